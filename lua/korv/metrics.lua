--- GET PREFIX/health and GET PREFIX/metrics: what a server counts, as JSON and as Prometheus has it. The counting is the core's, by
-- slots; here slots get their names. Knows of a server its counters, and of workers that their supervisor can be asked for all of them.
-- @module korv.metrics

local core = require "korv.core"
local task = require "korv.task"
local uv = require "luv"

local metrics = {}

local SLOTS = 1000           -- of endpoints; those beyond share one
local RESOURCE_BYTES = 200   -- so that what a worker tells of itself stays far below what its pipe carries
local PATH_BYTES = 65536     -- a longer resource has no endpoint
local OTHERS = 2             -- the slot of the endpoints beyond; 0 and 1 are the core's

-- Slots ------------------------------------------------------------------------------------------------------------------------------

local Slots = {}
Slots.__index = Slots

--- What gives endpoints the numbers that the core counts them under. An endpoint keeps its number as generations come and go.
-- @treturn Slots
function metrics.slots()
  return setmetatable({
    numbers = {}, last = OTHERS,
    names = {
      [0] = { verb = "*", resource = "(no endpoint)" },
      { verb = "*", resource = "(no request)" },
      { verb = "*", resource = "(other endpoints)" },
    },
  }, Slots)
end

--- The slot of a router's entry.
-- @tparam ?table entry `verb`, `resource`; nil: no endpoint
-- @treturn int
function Slots:of(entry)
  if not entry then return 0 end
  local name = entry.verb .. " " .. entry.resource
  local number = self.numbers[name]
  if number then return number end
  if self.last == SLOTS + OTHERS or #entry.resource > RESOURCE_BYTES or entry.resource:find "%c" then return OTHERS end
  self.last = self.last + 1
  self.numbers[name], self.names[self.last] = self.last, { verb = entry.verb, resource = entry.resource }
  return self.last
end

--- The slot of a request that gets to no endpoint, though it may be meant for one.
-- @tparam App app
-- @tparam table request
-- @treturn int
function Slots:of_request(app, request)
  return #request.resource > PATH_BYTES and 0 or self:of(app:entry(request))
end

-- One process ------------------------------------------------------------------------------------------------------------------------

local function uptime(server) return (uv.hrtime() - server.started_ns) / 1e9 end

--- What a server has counted until now.
-- @tparam Server server that listens
-- @treturn table its fields are those of docs/operations.md; `endpoints` is a list of `verb`, `resource`, `codes`, `seconds`, and
-- `buckets`, which are not added up yet
function metrics.snapshot(server)
  local now, endpoints = server.core:metrics(), core.json.array {}
  for slot = 0, server.slots.last do
    local counted, name = now.endpoints[slot], server.slots.names[slot]
    if counted then
      counted.verb, counted.resource = name.verb, name.resource
      endpoints[#endpoints + 1] = counted
    end
  end
  now.endpoints, now.generation, now.uptime = endpoints, server.generation.number, uptime(server)
  now.lua_bytes = math.floor(collectgarbage "count" * 1024)
  return now
end

-- All processes ----------------------------------------------------------------------------------------------------------------------

-- This worker's own numbers are newer than those that the supervisor has.
local function with_own(list, own)
  local all, is_there = {}, false
  for i, one in ipairs(list) do
    is_there = is_there or one.worker == own.worker
    all[i] = one.worker == own.worker and own or one
    own.starts = one.worker == own.worker and one.starts or own.starts
  end
  if not is_there then all[#all + 1] = own end
  return all
end

-- { workers, reloads }, or nil and a message. May wait.
local function gather(server)
  local all, message
  if server.gather then
    all, message = task.await(server.gather)
    if not all then return nil, message end
  end
  local own = metrics.snapshot(server)
  own.worker = server.worker
  if not all then return { workers = { own }, reloads = server.reload_counts } end
  return { workers = with_own(all.workers, own), reloads = all.reloads }
end

local function add_up(buckets)
  local sums, sum = {}, 0
  for i = 1, #core.duration_bounds + 1 do
    sum = sum + (buckets[i] or 0)
    sums[i] = sum
  end
  return sums, sum
end

local function with_sums(endpoint)
  local sums, count = add_up(endpoint.buckets)
  return {
    verb = endpoint.verb, resource = endpoint.resource, codes = endpoint.codes, seconds = endpoint.seconds, buckets = sums, count = count,
  }
end

local function for_json(all)
  local workers = {}
  for i, worker in ipairs(all.workers) do
    workers[i] = {}
    for name, value in pairs(worker) do workers[i][name] = value end
    workers[i].endpoints = core.json.array {}
    for n, endpoint in ipairs(worker.endpoints) do workers[i].endpoints[n] = with_sums(endpoint) end
  end
  return { workers = workers, reloads = all.reloads, duration_bounds = core.duration_bounds }
end

-- Prometheus -------------------------------------------------------------------------------------------------------------------------

local OF_WORKERS = {
  { "korv_requests_in_flight", "gauge", "in_flight", "Requests under way." },
  { "korv_connections", "gauge", "connections", "Connections that are open." },
  { "korv_connections_accepted_total", "counter", "connections_accepted", "Connections that were accepted." },
  { "korv_received_bytes_total", "counter", "bytes_received", "Bytes that came in on connections, SSH's own included." },
  { "korv_sent_bytes_total", "counter", "bytes_sent", "Bytes that went out on connections, SSH's own included." },
  { "korv_generation", "gauge", "generation", "The generation of the endpoint scripts that answers." },
  { "korv_lua_memory_bytes", "gauge", "lua_bytes", "Memory that Lua has, garbage included." },
  { "korv_loop_lag_seconds", "gauge", "loop_lag", "How late a timer of the loop came last." },
  { "korv_loop_lag_max_seconds", "gauge", "loop_lag_max", "How late one came at most, within the last one to two minutes." },
  { "korv_log_lines_dropped_total", "counter", "log_lines_dropped", "Lines of the log that were dropped because nobody read them." },
  { "korv_uptime_seconds", "gauge", "uptime", "Seconds since it began to listen." },
  { "korv_worker_starts_total", "counter", "starts", "Processes that were started in a worker's place." },
}

local ESCAPED = { ["\\"] = "\\\\", ['"'] = '\\"', ["\n"] = "\\n" }

-- Of name, value, name, value, …; a value that is nil has no label.
local function labels(...)
  local list, given = {}, table.pack(...)
  for i = 1, given.n, 2 do
    local name, value = given[i], given[i + 1]
    if value ~= nil then list[#list + 1] = ('%s="%s"'):format(name, tostring(value):gsub('[\\"\n]', ESCAPED)) end
  end
  return #list > 0 and "{" .. table.concat(list, ",") .. "}" or ""
end

local function number(value) return math.type(value) == "integer" and ("%d"):format(value) or ("%.15g"):format(value) end

local Text = {}
Text.__index = Text

function Text:family(name, kind, help)
  self[#self + 1] = ("# HELP %s %s"):format(name, help)
  self[#self + 1] = ("# TYPE %s %s"):format(name, kind)
end

function Text:sample(name, value, ...) self[#self + 1] = ("%s%s %s"):format(name, labels(...), number(value)) end

local function each_endpoint(all, fn)
  for _, worker in ipairs(all.workers) do
    for _, endpoint in ipairs(worker.endpoints) do fn(endpoint, worker.worker) end
  end
end

local function write_requests(text, all)
  text:family("korv_requests_total", "counter", "Requests that were answered, by endpoint and code.")
  each_endpoint(all, function(endpoint, worker)
    for code, count in pairs(endpoint.codes) do
      text:sample("korv_requests_total", count, "verb", endpoint.verb, "resource", endpoint.resource, "code", code, "worker", worker)
    end
  end)
end

local function write_durations(text, all)
  local name = "korv_request_duration_seconds"
  text:family(name, "histogram", "How long requests took, by endpoint.")
  each_endpoint(all, function(endpoint, worker)
    local verb, resource = endpoint.verb, endpoint.resource
    local sums, count = add_up(endpoint.buckets)
    for i, sum in ipairs(sums) do
      local bound = core.duration_bounds[i]
      text:sample(name .. "_bucket", sum, "verb", verb, "resource", resource, "le", bound and number(bound) or "+Inf", "worker", worker)
    end
    text:sample(name .. "_sum", endpoint.seconds, "verb", verb, "resource", resource, "worker", worker)
    text:sample(name .. "_count", count, "verb", verb, "resource", resource, "worker", worker)
  end)
end

local function write_family(text, all, name, kind, field, help)
  local is_new = true
  for _, worker in ipairs(all.workers) do
    if worker[field] then
      if is_new then text:family(name, kind, help) end
      is_new = false
      text:sample(name, worker[field], "worker", worker.worker)
    end
  end
end

local function for_prometheus(all)
  local text = setmetatable({}, Text)
  write_requests(text, all)
  write_durations(text, all)
  for _, family in ipairs(OF_WORKERS) do write_family(text, all, table.unpack(family)) end
  text:family("korv_reloads_total", "counter", "Reloads of the endpoint scripts, by what came of them.")
  text:sample("korv_reloads_total", all.reloads.done, "result", "done")
  text:sample("korv_reloads_total", all.reloads.failed, "result", "failed")
  return table.concat(text, "\n") .. "\n"
end

-- The endpoints ----------------------------------------------------------------------------------------------------------------------

local FORMATS = { json = for_json, prometheus = for_prometheus }

local function get_metrics(server, request)
  local format = FORMATS[request.query.format or "json"]
  if not format then return 400, { message = "format is json or prometheus" } end
  local all, message = gather(server)
  if not all then return 503, { message = message } end
  return 200, format(all)
end

-- Only a request that began before the drain hears of it from here: later ones are refused by the core.
local function get_health(server)
  if server.draining then return 503, { status = "draining" } end
  local connections, in_flight = server.core:counts()
  return 200, {
    status = "serving", generation = server.generation.number, worker = server.worker, uptime = uptime(server),
    connections = connections, in_flight = in_flight,
  }
end

-- An endpoint of the app's own wins.
local function add(app, resource, doc, endpoint)
  local entry = app.routes:match("GET", resource)
  if entry and entry.resource == resource then return end
  app.routes:add("GET", resource, endpoint, { doc = doc })
end

--- Registers GET PREFIX/health and GET PREFIX/metrics on an app that is about to serve.
-- @tparam App app
-- @tparam Server server
-- @tparam string prefix
function metrics.add(app, server, prefix)
  add(app, prefix .. "/health", "Whether this server serves.", function() return get_health(server) end)
  add(app, prefix .. "/metrics", "What this server counts; ?format=prometheus: as a string that Prometheus reads.",
    function(request) return get_metrics(server, request) end)
end

return metrics
