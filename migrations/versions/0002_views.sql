-- The views whose SQL PostgreSQL and SQLite share: values with their names, and one view per documented feed.
--
-- The view of a feed shows the feed without further params; `crowd-sentiment?period=30` is in `observations` only.
-- Samples have a code for their source, to be small.
-- CROSS JOIN fixes the join order in SQLite, which without statistics may read every sample to find one ticker's.

CREATE VIEW observations AS /* Current values with their names. */
SELECT n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value,
    m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source,
    m.instance_id, m.seq
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id;

CREATE VIEW revisions AS /* Values that are not current: replaced, or received late. */
SELECT n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value,
    m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source,
    m.instance_id, m.seq
FROM series n CROSS JOIN sample_revisions m
WHERE m.series_id = n.series_id;

CREATE VIEW crowd_sentiment AS /* Feed crowd-sentiment without further params. */
SELECT m.ts, n.ticker, m.value AS sentiment, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'crowd-sentiment' AND n.metric = 'crowd_sentiment';

CREATE VIEW crowd_sentiment_moving_average AS /* Feed crowd-sentiment-moving-average without further params. */
SELECT m.ts, n.ticker, m.value AS moving_average, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'crowd-sentiment-moving-average' AND n.metric = 'moving_average';

CREATE VIEW crowd_sentiment_z_score AS /* Feed crowd-sentiment-z-score without further params. */
SELECT m.ts, n.ticker, m.value AS z_score, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'crowd-sentiment-z-score' AND n.metric = 'z_score';

CREATE VIEW crowd_sentiment_z_score_moving_average AS /* Feed crowd-sentiment-z-score-moving-average without further params. */
SELECT m.ts, n.ticker, m.value AS moving_average, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'crowd-sentiment-z-score-moving-average' AND n.metric = 'moving_average';

CREATE VIEW market_prophit_sentiment AS /* Feed market-prophit-sentiment without further params. */
SELECT m.ts, n.ticker, m.value AS sentiment, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'market-prophit-sentiment' AND n.metric = 'mp_sentiment';

CREATE VIEW market_prophit_sentiment_moving_average AS /* Feed market-prophit-sentiment-moving-average without further params. */
SELECT m.ts, n.ticker, m.value AS moving_average, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'market-prophit-sentiment-moving-average' AND n.metric = 'moving_average';

CREATE VIEW market_prophit_sentiment_z_score AS /* Feed market-prophit-sentiment-z-score without further params. */
SELECT m.ts, n.ticker, m.value AS z_score, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'market-prophit-sentiment-z-score' AND n.metric = 'z_score';

CREATE VIEW market_prophit_sentiment_z_score_moving_average AS /* Feed market-prophit-sentiment-z-score-moving-average without further params. */
SELECT m.ts, n.ticker, m.value AS moving_average, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'market-prophit-sentiment-z-score-moving-average'
    AND n.metric = 'moving_average';

CREATE VIEW tweet_volume AS /* Feed tweet-volume without further params. */
SELECT m.ts, n.ticker, m.value AS volume, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'tweet-volume' AND n.metric = 'volume';

CREATE VIEW tweet_buzz AS /* Feed tweet-buzz without further params. */
SELECT m.ts, n.ticker, m.value AS buzz, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'tweet-buzz' AND n.metric = 'buzz';

-- One row per ts and ticker (and user), one column per metric.

CREATE VIEW user_sentiment AS /* Feed user-sentiment without further params. Column revision is the sum over all columns; source is mixed if they differ. */
SELECT m.ts, n.ticker, n.user_id,
    MAX(CASE WHEN n.metric = 'sentiment' THEN m.value END) AS sentiment,
    MAX(CASE WHEN n.metric = 'user_score' THEN m.value END) AS user_score,
    SUM(m.revision) AS revision,
    MAX(m.published_at) AS published_at,
    MAX(m.received_at) AS received_at,
    CASE WHEN MIN(m.source) < MAX(m.source) THEN 'mixed'
        ELSE CASE MAX(m.source) WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'user-sentiment'
GROUP BY m.ts, n.ticker, n.user_id;

CREATE VIEW user_sentiment_last_minute AS /* Feed user-sentiment-last-minute without further params. Column revision is the sum over all columns; source is mixed if they differ. */
SELECT m.ts, n.ticker, n.user_id,
    MAX(CASE WHEN n.metric = 'sentiment' THEN m.value END) AS sentiment,
    MAX(CASE WHEN n.metric = 'user_score' THEN m.value END) AS user_score,
    SUM(m.revision) AS revision,
    MAX(m.published_at) AS published_at,
    MAX(m.received_at) AS received_at,
    CASE WHEN MIN(m.source) < MAX(m.source) THEN 'mixed'
        ELSE CASE MAX(m.source) WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'user-sentiment-last-minute'
GROUP BY m.ts, n.ticker, n.user_id;

CREATE VIEW crowd_sentiment_chart_data AS /* Feed crowd-sentiment-chart-data without further params. Column revision is the sum over all columns; source is mixed if they differ. */
SELECT m.ts, n.ticker,
    MAX(CASE WHEN n.metric = 'crowd_sentiment' THEN m.value END) AS crowd_sentiment,
    MAX(CASE WHEN n.metric = 'crowd_sentiment_moving_average' THEN m.value END) AS crowd_sentiment_moving_average,
    MAX(CASE WHEN n.metric = 'crowd_sentiment_z_score' THEN m.value END) AS crowd_sentiment_z_score,
    MAX(CASE WHEN n.metric = 'crowd_sentiment_z_score_moving_average' THEN m.value END)
        AS crowd_sentiment_z_score_moving_average,
    MAX(CASE WHEN n.metric = 'volume' THEN m.value END) AS volume,
    MAX(CASE WHEN n.metric = 'buzz' THEN m.value END) AS buzz,
    SUM(m.revision) AS revision,
    MAX(m.published_at) AS published_at,
    MAX(m.received_at) AS received_at,
    CASE WHEN MIN(m.source) < MAX(m.source) THEN 'mixed'
        ELSE CASE MAX(m.source) WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'crowd-sentiment-chart-data'
GROUP BY m.ts, n.ticker;

CREATE VIEW market_prophit_sentiment_chart_data AS /* Feed market-prophit-sentiment-chart-data without further params. Column revision is the sum over all columns; source is mixed if they differ. */
SELECT m.ts, n.ticker,
    MAX(CASE WHEN n.metric = 'mp_sentiment' THEN m.value END) AS mp_sentiment,
    MAX(CASE WHEN n.metric = 'mp_sentiment_moving_average' THEN m.value END) AS mp_sentiment_moving_average,
    MAX(CASE WHEN n.metric = 'mp_sentiment_z_score' THEN m.value END) AS mp_sentiment_z_score,
    MAX(CASE WHEN n.metric = 'mp_sentiment_z_score_moving_average' THEN m.value END)
        AS mp_sentiment_z_score_moving_average,
    MAX(CASE WHEN n.metric = 'volume' THEN m.value END) AS volume,
    MAX(CASE WHEN n.metric = 'buzz' THEN m.value END) AS buzz,
    SUM(m.revision) AS revision,
    MAX(m.published_at) AS published_at,
    MAX(m.received_at) AS received_at,
    CASE WHEN MIN(m.source) < MAX(m.source) THEN 'mixed'
        ELSE CASE MAX(m.source) WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END END AS source
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id AND n.feed = 'market-prophit-sentiment-chart-data'
GROUP BY m.ts, n.ticker;
