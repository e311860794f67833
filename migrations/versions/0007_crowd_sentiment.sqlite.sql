-- The candles of crowd sentiment, as they were before candles_hourly and candles_daily.

DROP VIEW crowd_sentiment_hourly;
CREATE VIEW crowd_sentiment_hourly AS /* Crowd sentiment by UTC hour, of candles_hourly. */
SELECT ticker, bucket_at, open, high, low, close, mean, samples, covered_minutes, coverage_percent, is_final
FROM candles_hourly WHERE feed = 'crowd-sentiment' AND metric = 'crowd_sentiment';

DROP VIEW crowd_sentiment_daily;
CREATE VIEW crowd_sentiment_daily AS /* Crowd sentiment by UTC day, of candles_daily. */
SELECT ticker, bucket_at, open, high, low, close, mean, samples, covered_minutes, coverage_percent, is_final
FROM candles_daily WHERE feed = 'crowd-sentiment' AND metric = 'crowd_sentiment';
