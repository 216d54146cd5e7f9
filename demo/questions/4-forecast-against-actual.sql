-- What did org 402 forecast, and what did it close? (CSV uploads against the CRM)
SELECT f.month, f.committed, a.won, a.won / f.committed AS ratio
FROM (
  SELECT date_trunc('month', period) AS month, sum(amount) AS committed
  FROM lake.org_402.forecast_upload
  WHERE category = 'commit'
  GROUP BY 1
) AS f
JOIN (
  SELECT date_trunc('month', close_date) AS month, sum(amount) AS won
  FROM lake.org_402.opportunity
  WHERE is_won
  GROUP BY 1
) AS a ON a.month = f.month
ORDER BY f.month DESC
LIMIT 6
