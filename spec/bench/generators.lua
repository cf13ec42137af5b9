--- The generators of load that scripts/bench runs beside a server: each returns what it has measured, or raises where an answer was wrong
-- or missing. It knows no row.
-- @module bench.generators

local peers = require "bench.peers"
local process = require "bench.process"

local generators = {}

local RUN_S = 60
local ANSWER = '{"msg":"Hello World!"}'
local DOCUMENT = '"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkl"' -- the body of a request of 100 bytes

--- The CPUs.
-- @treturn string the load generators'
-- @treturn string the servers'
function generators.cpus()
  local list = process.read "/proc/self/status":match "Cpus_allowed_list:%s*(%S+)"
  local first, last = list:match "^%d+", list:match "%d+$"
  if first == last then error("two CPUs are needed: one for the server, one for the load generator", 0) end
  return first, last
end

--- The numbers in a line of JSON.
-- @string output
-- @treturn table by name
function generators.numbers(output)
  local result = {}
  for key, value in output:gmatch '"([%w_]+)":([%d.]+)' do result[key] = tonumber(value) end
  return result
end

--- The command that runs one of our programs.
-- @string name
-- @tparam table server that runs
-- @tparam table options of the program, by name
-- @treturn {string,...}
function generators.program(name, server, options)
  local command = { peers.programs .. name, "--port", server.port, "--key", peers.path "client_key", "--timeout", tostring(RUN_S) }
  if not options.cpu then options.cpu = generators.cpus() end
  for option, value in pairs(options) do
    command[#command + 1] = "--" .. option:gsub("_", "-")
    command[#command + 1] = tostring(value)
  end
  return command
end

--- Runs spec/bench/load.c.
-- @tparam table server
-- @tparam table options
-- @treturn table what it prints
function generators.load(server, options)
  options.pid = server.process.pid
  return generators.numbers(process.run(generators.program("load", server, options)))
end

-- Runs a load generator that is not ours beside the server's CPU clock; returns its output too.
local function load_http(server, ...)
  local output = process.run { peers.programs .. "cost", "--pid", tostring(server.process.pid), "--cpu", (generators.cpus()), ... }
  return generators.numbers(output), output
end

local function per_request(result, answers)
  result.server_cpu_us_per_request = result.server_cpu_us / answers
  result.load_cpu_us_per_request = result.load_cpu_us / answers
  return result
end

local function url(server) return ("https://127.0.0.1:%s/hello"):format(server.port) end

--- Runs wrk for two seconds.
-- @tparam table server
-- @number connections
-- @treturn table as of load
function generators.wrk(server, connections)
  local result, output = load_http(server, "wrk", "--threads", "1", "--connections", tostring(connections), "--duration", "2s",
    "--script", peers.root .. "/spec/bench/wrk.lua", url(server), "--", DOCUMENT, ANSWER)
  if result.errors ~= 0 or result.answers == 0 then error("wrk got wrong answers or none:\n" .. output, 0) end
  return per_request(result, result.answers)
end

local JSON_HEADER = "content-type: application/json"

--- Runs h2load. It does not look into answers; so their codes and their bytes are counted, and one is looked at before.
-- @tparam table server
-- @number requests
-- @number streams
-- @treturn table as of load, without latency
function generators.h2load(server, requests, streams)
  local document = process.write(peers.path "document.json", DOCUMENT)
  local one = process.run { "nghttp", "--no-verify-peer", "--header", JSON_HEADER, "--data", document, url(server) }
  if one ~= ANSWER then error("a wrong answer over HTTP/2: " .. one, 0) end
  local result, output = load_http(server, "h2load", "--requests", tostring(requests), "--clients", "1", "--threads", "1",
    "--max-concurrent-streams", tostring(streams), "--header", JSON_HEADER, "--data", document, url(server))
  local good, bytes = output:match "status codes: (%d+) 2xx", output:match "%((%d+)%) data"
  if tonumber(good) ~= requests or tonumber(bytes) ~= requests * #ANSWER then error("h2load got wrong answers:\n" .. output, 0) end
  return per_request(result, requests)
end

return generators
