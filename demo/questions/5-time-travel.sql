-- What did org 401's opportunities look like before the second run, and now?
SELECT 'before' AS at, count(*) AS opportunities, sum(CASE WHEN is_won THEN 1 ELSE 0 END) AS won,
       max(updated_at) AS newest
FROM lake.org_401.opportunity FOR VERSION AS OF {before}
UNION ALL
SELECT 'now' AS at, count(*) AS opportunities, sum(CASE WHEN is_won THEN 1 ELSE 0 END) AS won,
       max(updated_at) AS newest
FROM lake.org_401.opportunity
ORDER BY at
