from __future__ import annotations

from ingestor.config.model import Subscription
from ingestor.provider.subscriptions.supervisor import group_subscriptions, shared_params


def test_group_has_one_path_and_one_set_of_shared_params() -> None:
    subscriptions = [
        Subscription("/real-time/tweet-buzz", "get", {"ticker": "AAPL"}),
        Subscription("/real-time/tweet-buzz", "get", {"ticker": "TSLA"}),
        Subscription("/real-time/tweet-buzz", "get", {"ticker": "AAPL", "period": "30"}),
        Subscription("/real-time/user-sentiment", "get", {"user_id": "7"}),
        Subscription("/real-time/user-sentiment", "get", {}),
    ]
    assert {group_key: len(members) for group_key, members in group_subscriptions(subscriptions).items()} == {
        ("/real-time/tweet-buzz", "{}"): 2,
        ("/real-time/tweet-buzz", '{"period":"30"}'): 1,
        ("/real-time/user-sentiment", "{}"): 2,
    }


def test_shared_params_are_canonical_json() -> None:
    subscription = Subscription("/p", "get", {"z": "ü", "ticker": "AAPL", "a": "1"})
    assert shared_params(subscription) == '{"a":"1","z":"ü"}'
