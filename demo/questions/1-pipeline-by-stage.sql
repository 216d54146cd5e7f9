-- What is in the pipeline, by stage and org?
SELECT org, stage, count(*) AS opportunities, sum(amount) AS amount
FROM (
  SELECT '401' AS org, stage, amount FROM lake.org_401.opportunity
  UNION ALL
  SELECT '402' AS org, stage, amount FROM lake.org_402.opportunity
  UNION ALL
  SELECT '403' AS org, stage, amount FROM lake.org_403.opportunity
) AS pipeline
GROUP BY org, stage
ORDER BY org, amount DESC
