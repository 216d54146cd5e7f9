-- What do people write and say? (nested documents: participants, segments)
SELECT org, source, count(*) AS conversations, count(DISTINCT person) AS people, sum(parts) AS parts
FROM (
  SELECT org, 'email' AS source, participants[1]['address'] AS person,
         coalesce(array_length(attachments), 0) AS parts
  FROM lake.org_401.email
  UNION ALL
  SELECT org, 'call' AS source, segments[1]['speaker'] AS person, array_length(segments) AS parts
  FROM lake.org_401.transcript
  UNION ALL
  SELECT org, 'email' AS source, participants[1]['address'] AS person,
         coalesce(array_length(attachments), 0) AS parts
  FROM lake.org_402.email
  UNION ALL
  SELECT org, 'call' AS source, segments[1]['speaker'] AS person, array_length(segments) AS parts
  FROM lake.org_402.transcript
) AS conversations
GROUP BY org, source
ORDER BY org, source
