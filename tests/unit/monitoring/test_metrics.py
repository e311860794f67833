from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ingestor.core.entries import Fact
from ingestor.monitoring.metrics import MAX_INSTANCES, Metrics
from ingestor.monitoring.status import DeadLetterCounts, Status, TokenStatus

from .healthy_status import AAPL, GOOD, HOST1, HOST2, NOON, SENTIMENT, status


def value(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def of(snapshot: Status) -> Metrics:
    return Metrics(lambda: snapshot)


EVERY_NAME = [
    "ingestor_frames_received_total",
    "ingestor_rows_total",
    "ingestor_dead_letters_total",
    "ingestor_batch_seconds_count",
    "ingestor_spool_entries",
    "ingestor_spool_bytes",
    "ingestor_spool_limit_bytes",
    "ingestor_spool_kept_bytes",
    "ingestor_disk_full",
    "ingestor_spools_set_aside",
    "ingestor_key_refused",
    "ingestor_commit_lag_seconds",
    "ingestor_last_frame_timestamp_seconds",
    "ingestor_connected",
    "ingestor_connections",
    "ingestor_subscriptions",
    "ingestor_reconnects_total",
    "ingestor_provider_errors_total",
    "ingestor_repairs_total",
    "ingestor_logins_total",
    "ingestor_token_expires_timestamp_seconds",
    "ingestor_database_up",
    "ingestor_config_last_reload_successful",
    "ingestor_build_info",
]


def test_instances_that_share_the_database_are_counted_by_state() -> None:
    metrics = of(status(instances=(HOST1, HOST2), unreceived_subscriptions=4))
    counts = {state: value(metrics, "ingestor_instances", state=state) for state in ("alive", "silent", "stopped")}
    assert counts == {"alive": 1, "silent": 1, "stopped": 0}
    assert value(metrics, "ingestor_instance_behind_seconds", id="2", name="host2") == 90
    assert value(metrics, "ingestor_unreceived_subscriptions") == 4


def test_no_instance_is_exported_while_the_database_cannot_be_read() -> None:
    assert b"ingestor_instance" not in generate_latest(of(GOOD).registry)


def test_metrics_of_instances_are_bounded() -> None:
    ended = replace(HOST2, state="stopped", behind_seconds=None)
    many = tuple(replace(HOST2, instance_id=number) for number in range(50))
    text = generate_latest(of(status(instances=(ended, *many))).registry).decode()
    assert text.count("\ningestor_instance_behind_seconds{") == MAX_INSTANCES


@pytest.mark.parametrize("name", EVERY_NAME)
def test_every_metric_is_exported_from_the_first_scrape(name: str) -> None:
    lines = generate_latest(of(GOOD).registry).decode().splitlines()
    assert any(line.startswith((f"{name} ", f"{name}{{")) for line in lines)


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("ingestor_frames_received_total", {"feed": "crowd-sentiment"}, 7),
        ("ingestor_last_frame_timestamp_seconds", {"feed": "crowd-sentiment"}, NOON.timestamp()),
        ("ingestor_rows_total", {"outcome": "new"}, 5),
        ("ingestor_rows_total", {"outcome": "revised"}, 1),
        ("ingestor_rows_total", {"outcome": "duplicate"}, 2),
        ("ingestor_rows_total", {"outcome": "dead"}, 1),
        ("ingestor_dead_letters_total", {"stage": "decode"}, 4),
        ("ingestor_dead_letters_total", {"stage": "insert"}, 6),
        ("ingestor_spool_entries", {}, 3),
        ("ingestor_spool_bytes", {}, 900),
        ("ingestor_spool_limit_bytes", {}, 1000),
        ("ingestor_spool_kept_bytes", {}, 5000),
        ("ingestor_commit_lag_seconds", {}, 0.25),
        ("ingestor_database_up", {}, 1),
        ("ingestor_connected", {"path": "/real-time/crowd-sentiment"}, 1),
        ("ingestor_subscriptions", {"state": "live"}, 1),
        ("ingestor_subscriptions", {"state": "refused"}, 0),
        ("ingestor_token_expires_timestamp_seconds", {}, NOON.timestamp()),
        ("ingestor_logins_total", {"outcome": "ok"}, 3),
        ("ingestor_logins_total", {"outcome": "refused"}, 0),
        ("ingestor_config_last_reload_successful", {}, 1),
    ],
)
def test_scrape_shows_the_snapshot(name: str, labels: dict[str, str], expected: float) -> None:
    assert value(of(status(dead_letters=DeadLetterCounts(decode=4, insert=6))), name, **labels) == expected


def test_states_that_alerts_watch_are_exported_and_end_with_the_cure() -> None:
    trouble = status(
        spool=replace(GOOD.spool, disk_full=True, set_aside=2), token=replace(GOOD.token, key_refused=True)
    )
    names = ("ingestor_key_refused", "ingestor_disk_full", "ingestor_spools_set_aside")
    snapshots = iter([trouble] * 3 + [GOOD] * 3)
    metrics = Metrics(lambda: next(snapshots))
    assert [value(metrics, name) for name in names] == [1, 1, 2]
    assert [value(metrics, name) for name in names] == [0, 0, 0]


def test_each_scrape_takes_a_new_snapshot() -> None:
    snapshots = iter([GOOD, status(config_reload_successful=False)])
    metrics = Metrics(lambda: next(snapshots))
    assert value(metrics, "ingestor_config_last_reload_successful") == 1
    assert value(metrics, "ingestor_config_last_reload_successful") == 0


def test_constructor_takes_no_snapshot() -> None:
    def unready() -> Status:
        raise AssertionError("the daemon is still being built")

    Metrics(unready)


def test_two_paths_of_one_feed_are_one_series() -> None:
    bare = replace(SENTIMENT, path="crowd-sentiment", frames=3)
    metrics = of(status(connections=(SENTIMENT, bare)))
    assert value(metrics, "ingestor_frames_received_total", feed="crowd-sentiment") == 10


def test_path_is_connected_if_all_its_connections_are() -> None:
    other_params = replace(SENTIMENT, connected=False)
    metrics = of(status(connections=(other_params, SENTIMENT)))
    assert value(metrics, "ingestor_connected", path=SENTIMENT.path) == 0


def test_open_connections_are_counted_by_protocol() -> None:
    closed = replace(SENTIMENT, connected=False)
    metrics = of(status(connections=(SENTIMENT, replace(SENTIMENT, dialect="0.9"), SENTIMENT, closed)))
    assert {version: value(metrics, "ingestor_connections", protocol=version) for version in ("4", "0.9")} == {
        "4": 2,
        "0.9": 1,
    }


def test_feed_without_subscription_is_labeled_other() -> None:
    stray = replace(SENTIMENT, feed="made-up-by-the-server", frames=2)
    metrics = of(status(connections=(SENTIMENT, stray), subscriptions=(AAPL,)))
    assert value(metrics, "ingestor_frames_received_total", feed="other") == 2
    assert value(metrics, "ingestor_frames_received_total", feed="made-up-by-the-server") is None


def test_publish_skew_is_exported_for_subscribed_feeds() -> None:
    metrics = of(status(publish_skew_seconds={"crowd-sentiment": -14_400.0, "made-up-by-the-server": 1.0}))
    assert value(metrics, "ingestor_publish_skew_seconds", feed="crowd-sentiment") == -14_400
    assert value(metrics, "ingestor_publish_skew_seconds", feed="made-up-by-the-server") is None


def test_expiry_is_absent_without_a_token() -> None:
    assert value(of(status(token=TokenStatus())), "ingestor_token_expires_timestamp_seconds") is None


@pytest.mark.parametrize(
    ("fact", "name", "labels"),
    [
        pytest.param(
            Fact("disconnected", 0, {"cause": "mute", "reason": "nothing heard for 45 s"}),
            "ingestor_reconnects_total",
            {"reason": "mute"},
            id="disconnected",
        ),
        pytest.param(
            Fact("disconnected", 0, {"reason": "the server's own words"}),
            "ingestor_reconnects_total",
            {"reason": "other"},
            id="unknown cause",
        ),
        pytest.param(
            Fact("provider_error", 0, {"event": "err", "text": "x"}),
            "ingestor_provider_errors_total",
            {"event": "err"},
            id="err event",
        ),
        pytest.param(
            Fact("provider_error", 0, {"event": "invented-by-the-server"}),
            "ingestor_provider_errors_total",
            {"event": "other"},
            id="unknown event",
        ),
        pytest.param(Fact("repaired", 0, {}), "ingestor_repairs_total", {"outcome": "done"}, id="repaired"),
        pytest.param(Fact("repair_failed", 0, {}), "ingestor_repairs_total", {"outcome": "failed"}, id="repair failed"),
    ],
)
def test_fact_counts_once_under_its_label(fact: Fact, name: str, labels: dict[str, str]) -> None:
    metrics = of(GOOD)
    assert value(metrics, name, **labels) == 0
    metrics.on_fact(fact)
    assert value(metrics, name, **labels) == 1


def test_suppressed_provider_errors_are_counted() -> None:
    metrics = of(GOOD)
    metrics.on_fact(Fact("provider_error", 0, {"event": "err", "text": "x", "suppressed": 2990}))
    assert value(metrics, "ingestor_provider_errors_total", event="err") == 2991


def test_fact_without_a_metric_counts_nothing() -> None:
    metrics = of(GOOD)
    before = generate_latest(metrics.registry)
    metrics.on_fact(Fact("subscribed", 0, {}, "live"))
    assert generate_latest(metrics.registry) == before


def test_batches_and_uncaught_errors_are_counted() -> None:
    metrics = of(GOOD)
    metrics.batch_seconds.observe(0.02)
    metrics.uncaught_errors.inc()
    assert value(metrics, "ingestor_batch_seconds_count") == 1
    assert value(metrics, "ingestor_batch_seconds_bucket", le="0.025") == 1
    assert value(metrics, "ingestor_uncaught_errors_total") == 1


def test_openmetrics_text_is_valid_with_a_hostile_path() -> None:
    hostile = replace(SENTIMENT, path='a"b\nc\\d')
    text = generate_openmetrics(of(status(connections=(hostile,))).registry).decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert [s.labels["path"] for s in samples if s.name == "ingestor_connected"] == [hostile.path]


def test_two_daemons_in_one_process_do_not_share_counters() -> None:
    first, second = of(GOOD), of(GOOD)
    first.uncaught_errors.inc()
    assert value(second, "ingestor_uncaught_errors_total") == 0
