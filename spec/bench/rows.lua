--- The rows of scripts/bench: each is a function that measures and returns comparisons.
--
-- A comparison says `what` was measured, of which `server` (without: korv), `against` whom, and has a list of values of each round for
-- that server (`own`) and for the peer (`other`; without, the value is judged alone). `goal` is such as `{ "<=", 1.25 }`; without one it
-- is only told. `shown` tells a value's digits; `own_load` and `other_load` are what the load generator cost, in the same unit.
-- @module bench.rows

local attacking = require "bench.attacking"
local generators = require "bench.generators"
local peers = require "bench.peers"
local process = require "bench.process"
local reloading = require "bench.reloading"
local uv = require "luv"

local load, wrk, h2load, program = generators.load, generators.wrk, generators.h2load, generators.program

local ROUNDS = 7 -- many and short: what else the machine does then falls on all alike
local MANY_ROUNDS = 15 -- where they differ most
local WORKERS_ROUNDS = 45
local FEW_ROUNDS = 3 -- of what takes the best of several by itself, or has a server of its own
local RUN_S = 60

local rows = { rounds = ROUNDS, list = {} }

local function row(name, title, run) rows.list[#rows.list + 1] = { name = name, title = title, run = run } end

-- ---- measuring ----------------------------------------------------------------------------------------------------------------

--- Runs servers (nil: not there) side by side and measures them in turn. Returns what was measured: by name, a list of rounds.
local function in_turn(list, measure, rounds)
  local _, server_cpu = generators.cpus()
  local results = {}
  for _, server in pairs(list) do
    peers.start(server, server.cpu or server_cpu)
    results[server.name] = {}
  end
  for round = 1, rounds or ROUNDS do
    for _, server in pairs(list) do
      io.stderr:write(("\r\27[K%d/%d %s "):format(round, rounds or ROUNDS, server.name))
      results[server.name][round] = measure(server)
    end
  end
  io.stderr:write "\r\27[K"
  for _, server in pairs(list) do peers.stop(server) end
  return results
end

-- ---- comparing ----------------------------------------------------------------------------------------------------------------

local function values(results, key)
  local list = {}
  for i, result in ipairs(results or {}) do list[i] = type(key) == "function" and key(result) or result[key] end
  return results and list
end

local CPU, P50, P99 = "server_cpu_us_per_request", "p50_us", "p99_us"
local WHAT = { [CPU] = "CPU µs a request", [P50] = "p50 µs", [P99] = "p99 µs" }

local function compare(results, key, own, other, goal)
  local function load_of(name) return key == CPU and values(results[name], "load_cpu_us_per_request") or nil end
  return { what = WHAT[key], server = own, against = other, own = values(results[own], key), other = values(results[other], key),
    goal = goal, own_load = load_of(own), other_load = load_of(other), shown = key == CPU and "%.2f" or "%.0f" }
end

-- ---- the rows with goals ------------------------------------------------------------------------------------------------------

row("pipe-gzip", "gzip, 32 in flight", function()
  local results = in_turn({ peers.hello(), peers.bare(), peers.go(), peers.python() }, function(server)
    local requests = server.name == "Python" and 2000 or 50000
    return load(server, { encoding = "gzip", in_flight = 32, requests = requests })
  end, MANY_ROUNDS)
  return {
    compare(results, CPU, "korv", "bare libssh", { "<=", 1.25 }),
    compare(results, CPU, "korv", "Python", { "<=", 1 / 20, "1/20" }),
    compare(results, CPU, "korv", "Go", { "<=", 0.9 }),
  }
end)

row("pipe-line", "lines, 64 in flight", function()
  local results = in_turn({ peers.hello(), peers.nginx(), peers.go(), peers.bare() }, function(server)
    if server.name ~= "nginx" then return load(server, { encoding = "line", in_flight = 64, requests = 300000 }) end
    return h2load(server, 100000, 64)
  end)
  return {
    compare(results, CPU, "korv", "nginx", { "<=", 0.4 }),
    compare(results, CPU, "korv", "Go", { "<=", 0.5 }),
    compare(results, CPU, "korv", "bare libssh"),
  }
end)

row("many-line", "lines, 64 connections, 1 in flight each", function()
  local results = in_turn({ peers.hello(), peers.nginx(), peers.bare() }, function(server)
    if server.name == "nginx" then return wrk(server, 64) end
    return load(server, { encoding = "line", connections = 64, requests = 80000 })
  end)
  return { compare(results, CPU, "korv", "nginx", { "<=", 1 }), compare(results, CPU, "korv", "bare libssh") }
end)

row("one-line", "lines, 1 connection, 1 in flight", function()
  local results = in_turn({ peers.hello(), peers.nginx(), peers.bare() }, function(server)
    return server.name == "nginx" and wrk(server, 1) or load(server, { encoding = "line", requests = 15000 })
  end, MANY_ROUNDS)
  return {
    compare(results, P50, "korv", "nginx", { "<=", 1 }),
    compare(results, P99, "korv", "nginx", { "<=", 1 }),
    compare(results, P50, "korv", "bare libssh"),
    compare(results, CPU, "korv", "nginx"),
    compare(results, CPU, "korv", "bare libssh"),
  }
end)

row("log-in", "log-ins, one after the other", function()
  local results = in_turn({ peers.hello(), peers.bare() }, function(server)
    return generators.numbers(process.run(program("logins", server, { count = 400, pid = server.process.pid })))
  end, MANY_ROUNDS)
  local key = "log_ins_per_server_cpu_s"
  return { { what = "connections per CPU second", against = "bare libssh", own = values(results.korv, key),
    other = values(results["bare libssh"], key), goal = { ">=", 0.9 }, shown = "%.0f" } }
end)

local IDLE = 5000

local function idle_kb(server)
  process.run(program("logins", server, { count = 20 }))
  local before = peers.rss_kb(server)
  local crowd = process.start(program("logins", server, { count = IDLE, hold = 1 }))
  process.wait_until(function() return crowd.output:find "held" or crowd.code end, RUN_S)
  if crowd.code or not crowd.output:find "held" then error("the connections were not made:\n" .. crowd.output, 0) end
  local kb = (peers.rss_kb(server) - before) / IDLE
  process.stop(crowd)
  return kb
end

-- Each round has a server of its own: what one round has freed would be used again by the next.
row("idle", "5,000 idle connections", function()
  local list = {}
  for round = 1, FEW_ROUNDS do
    list[round] = in_turn({ peers.hello() }, idle_kb, 1).korv[1]
  end
  return { { what = "RSS of each, KB", own = list, goal = { "<=", 28 }, shown = "%.1f" } }
end)

local BODY_BYTES = 8 << 20

row("echo", "8 MiB bodies echoed", function()
  local results = in_turn({ peers.hello(), peers.sshd() }, function(server)
    local encoding = server.name == "sshd" and "cat" or "line"
    return load(server, { encoding = encoding, verb = "STORE", resource = "/echo", size = BODY_BYTES, requests = 10 })
  end, MANY_ROUNDS)
  local function mb_per_cpu_s(result) return 2 * BODY_BYTES / result[CPU] end -- in and out; bytes per µs are MB per second
  return { { what = "MB per CPU second", against = "sshd", own = values(results.korv, mb_per_cpu_s),
    other = values(results.sshd, mb_per_cpu_s), goal = { ">=", 1 }, shown = "%.0f" } }
end)

row("json", "JSON in one process", function()
  local list, by_name = {}, {}
  for round = 1, FEW_ROUNDS do
    local output = process.run { "env", ("LUA_CPATH=%s/build/?.so;;"):format(peers.root), "lua5.4", peers.root .. "/spec/bench/json.lua",
      "0.1" }
    for document, way, own, other in output:gmatch "([^\n]-) +(%l+code) +%d+ +%d+ +(%d+) +(%d+) +[%d.]+\n" do
      local what = ("%s: %s, MB/s"):format(document, way)
      local one = by_name[what]
      if not one then
        one = { what = what, against = "lua-cjson", own = {}, other = {}, goal = { ">=", 1.3 }, shown = "%.0f" }
        list[#list + 1], by_name[what] = one, one
      end
      one.own[round], one.other[round] = tonumber(own), tonumber(other)
    end
  end
  return list
end)

local function all_cpus() return table.concat({ generators.cpus() }, ",") end

-- What takes so long that the load generator is not the limit.
local WORK = [[
return function(app)
  app:get("/work", function()
    local n = 1
    for i = 1, 100000 do n = (n * 31 + i) % 1000003 end
    return 200, { msg = "Hello World!", n = n }
  end)
end
]]

-- Runs the endpoint of that script without any server, in so many processes at once: what the machine has to give.
local function alone(script, processes, count)
  local code = ("dofile %q { get = function(_, _, work) for _ = 1, %d do work() end end }"):format(script, count // processes)
  local began, running = uv.hrtime(), {}
  for i = 1, processes do running[i] = process.start { "taskset", "--cpu-list", all_cpus(), "lua5.4", "-e", code } end
  for _, one in ipairs(running) do process.finish(one, RUN_S) end
  return count / ((uv.hrtime() - began) / 1e9)
end

-- Rounds are short and many, because neighbours take CPUs from this machine for seconds on end.
row("workers", "two workers, an endpoint that computes", function()
  local script = process.write(peers.path "work.lua", WORK)
  local servers = { peers.korv("one", script), peers.korv("two", script, "--workers", "2") }
  for i, server in ipairs(servers) do server.cpu, server.workers = all_cpus(), i end
  local results = in_turn(servers, function(server)
    local result = load(server, { encoding = "line", connections = 16, requests = 500, resource = "/work" })
    result.alone_per_s = alone(script, server.workers, 500)
    return result
  end, WORKERS_ROUNDS)
  local function two_against_one(what, key, goal)
    return { what = what, against = "one", own = values(results.two, key), other = values(results.one, key), goal = goal, shown = "%.0f" }
  end
  return { two_against_one("requests per second", "answers_per_s", { ">=", 1.8 }),
    two_against_one("the same in plain Lua processes", "alone_per_s") }
end)

local LOG_INS_A_SECOND = 100

-- The log-ins' client runs only when nothing else would on its CPU, so that it does not hold up the generator whose latency counts.
local function live(server)
  local storm = server.name == "log-ins" and process.start { "chrt", "--idle", "0",
    table.unpack(program("logins", server, { count = LOG_INS_A_SECOND * 4, rate = LOG_INS_A_SECOND })) }
  local result = load(server, { encoding = "line", in_flight = 64, rate = 2000, requests = 6000 })
  if not storm then return result end
  if storm.code then error("the log-ins ended too early:\n" .. storm.output, 0) end
  local rate = generators.numbers(process.finish(storm, RUN_S)).log_ins_per_s
  if rate < 0.95 * LOG_INS_A_SECOND then error(("only %.0f log-ins a second were made"):format(rate), 0) end
  return result
end

row("storm", "2,000 requests a second, while 100 log in", function()
  local script = peers.root .. "/scripts/endpoints/hello.lua"
  local results = in_turn({ peers.korv("log-ins", script), peers.korv("quiet", script) }, live)
  return { compare(results, P99, "log-ins", "quiet", { "<=", 2 }), compare(results, P50, "log-ins", "quiet") }
end)

-- ---- the rows that are only told ----------------------------------------------------------------------------------------------

row("one-gzip", "gzip, 1 connection, 1 in flight", function()
  local results = in_turn({ peers.hello(), peers.bare() }, function(server)
    return load(server, { encoding = "gzip", requests = 5000 })
  end)
  return { compare(results, CPU, "korv", "bare libssh"), compare(results, P50, "korv", "bare libssh"),
    compare(results, P99, "korv", "bare libssh") }
end)

row("exec", "`ssh HOST GET /hello`, one at a time", function()
  local script = peers.root .. "/scripts/endpoints/hello.lua"
  local results = in_turn({ peers.korv("command", script), peers.korv("message", script) }, function(server)
    return load(server, { encoding = server.name == "command" and "exec" or "line", requests = 3000 })
  end)
  return { compare(results, CPU, "command", "message"), compare(results, P50, "command", "message"),
    compare(results, P99, "command", "message") }
end)

row("attacked", "lines, 64 connections, while others attack", function()
  local script = peers.root .. "/scripts/endpoints/hello.lua"
  local results = in_turn({ peers.korv("attacked", script), peers.korv("calm", script) }, function(server)
    local stop = server.name == "attacked" and attacking.begin(server, (generators.cpus()))
    local result = load(server, { encoding = "line", connections = 64, requests = 40000 })
    if stop then stop() end
    return result
  end)
  return { compare(results, P50, "attacked", "calm"), compare(results, P99, "attacked", "calm") }
end)

local function reload_row(name, title, requests, every_ms)
  row(name, title, function()
    local scripts = reloading.write_scripts()
    local servers = { peers.korv("reloading", table.unpack(scripts)), peers.korv("at rest", table.unpack(scripts)) }
    local results = in_turn(servers, function(server)
      local stop = server.name == "reloading" and reloading.begin(server, every_ms)
      local result = load(server, { encoding = "line", requests = requests })
      if stop then stop() end
      return result
    end)
    return { compare(results, P50, "reloading", "at rest"), compare(results, P99, "reloading", "at rest") }
  end)
end

reload_row("reload", "a reload every 200 ms", 10000, 200)
reload_row("reload-on", "one reload after the other", 5000, 5)

return rows
