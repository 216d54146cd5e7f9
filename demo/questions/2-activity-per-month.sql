-- How busy was org 401 on its opportunities, month by month, and on which was it worth it?
SELECT
  date_trunc('month', a.created_at) AS month,
  count(*) AS activities,
  count(DISTINCT o.id) AS opportunities,
  sum(a.duration_minutes) / 60 AS hours,
  sum(CASE WHEN o.is_won THEN 1 ELSE 0 END) AS on_won_deals
FROM lake.org_401.activity AS a
JOIN lake.org_401.opportunity AS o ON o.id = a.opportunity_id
WHERE a.created_at >= TIMESTAMP '2025-01-01T00:00:00Z'
GROUP BY 1
ORDER BY 1
