-- What wrk sends to an Iceberg REST catalog, and what it reports. Arguments: kind, tables, threads, the
-- folder that manifest lists are said to be in, a number that grows from run to run, and the file of
-- entity tags.
--
-- Each thread commits to tables of its own, one after the other, so that no two commits meet.

local threads = 0

function setup(thread)
  thread:set("id", threads)
  threads = threads + 1
end

local kind, tables, count, folder, run
local next_table, commits, tags = 0, {}, {}

local function path(number)
  return string.format("%s/v1/namespaces/bench/tables/t%06d", wrk.path, number)
end

-- The next table of this thread, and how many commits of this run it has had.
local function turn()
  local own = math.floor(tables / count)
  local number = (next_table % own) * count + id
  next_table = next_table + 1
  local done = commits[number] or 0
  commits[number] = done + 1
  return number, done
end

local requests = {}

-- The table as it is.
function requests.load()
  return wrk.format("GET", path(math.random(0, tables - 1)))
end

-- Each table in turn.
function requests.each()
  return wrk.format("GET", path((turn())))
end

-- The table, unless it is still as the client has it.
function requests.same()
  local tag = tags[math.random(#tags)]
  return wrk.format("GET", path(tag.table), { ["If-None-Match"] = tag.tag })
end

local json = { ["Content-Type"] = "application/json" }

function requests.properties()
  local number, done = turn()
  local body = string.format(
    '{"requirements":[],"updates":[{"action":"set-properties","updates":{"bench":"%s %d"}}]}', run, done)
  return wrk.format("POST", path(number), json, body)
end

-- What an engine's append sends: the snapshot, and `main` moved to it. What stands in the manifest list
-- is read by no catalog. The snapshot before goes, as with an engine that expires, so that a table's
-- metadata does not grow with the run. That `main` was not moved is not asked for: with few tables a
-- commit that takes long is met by the next one, and all later ones would be refused with it.
function requests.append()
  local number, done = turn()
  local before = run * 1000000 + done
  local after = before + 1
  local parent = done == 0 and "" or string.format('"parent-snapshot-id":%d,', before)
  local remove = done == 0 and ""
    or string.format(',{"action":"remove-snapshots","snapshot-ids":[%d]}', before)
  local body = string.format(
    '{"requirements":[{"type":"assert-current-schema-id","current-schema-id":0}],"updates":['
      .. '{"action":"add-snapshot","snapshot":{"snapshot-id":%d,%s"sequence-number":%d,"timestamp-ms":%d,'
      .. '"manifest-list":"%s/snap-%d.avro","schema-id":0,"summary":{"operation":"append",'
      .. '"added-data-files":"4","added-records":"100000","added-files-size":"12345678",'
      .. '"total-data-files":"4","total-records":"100000","total-files-size":"12345678"}}},'
      .. '{"action":"set-snapshot-ref","ref-name":"main","type":"branch","snapshot-id":%d}%s]}',
    after, parent, after, os.time() * 1000, folder, after, after, remove)
  return wrk.format("POST", path(number), json, body)
end

function init(args)
  kind, folder = args[1], args[4]
  tables, count, run = tonumber(args[2]), tonumber(args[3]), tonumber(args[5])
  -- The path of the address on wrk's command line goes in front of every path.
  wrk.path = wrk.path:gsub("/$", "")
  math.randomseed(run * 100 + id)
  if kind == "same" then
    for line in io.lines(args[6]) do
      local number, tag = line:match("^(%d+) (.+)$")
      tags[#tags + 1] = { table = tonumber(number), tag = tag }
    end
  end
  -- wrk looks at one request of the first thread, which it does not send.
  local looked_at = id > 0
  function request()
    if not looked_at then
      looked_at = true
      return requests.load()
    end
    return requests[kind]()
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.stderr:write(string.format(
    '{"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"max_ms":%f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
