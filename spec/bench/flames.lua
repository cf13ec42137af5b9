--- Flame graphs of korv's server under the load of the two main rows, by perf, into docs/.
-- @module bench.flames

local generators = require "bench.generators"
local peers = require "bench.peers"
local process = require "bench.process"

local flames = {}

local SECONDS = 2
local TO_SVG = "perf script --no-inline -i %s | lua5.4 %s/spec/bench/flame.lua '%s' > %s/docs/%s"

local LOADS = {
  { file = "flame-pipe-gzip.svg", title = "gzip, 32 in flight", options = { encoding = "gzip", in_flight = 32, requests = 400000 } },
  { file = "flame-pipe-line.svg", title = "lines, 64 in flight", options = { encoding = "line", in_flight = 64, requests = 2000000 } },
}

local function record(server, data)
  return process.run { "perf", "record", "--quiet", "-F", "997", "--call-graph", "dwarf,16384", "-p", tostring(server.process.pid), "-o",
    data, "--", "sleep", tostring(SECONDS) }
end

local function draw(one)
  local server, data = peers.hello(), peers.path "perf.data"
  local _, cpu = generators.cpus()
  peers.start(server, cpu)
  one.options.pid = server.process.pid
  local load = process.start(generators.program("load", server, one.options))
  record(server, data)
  process.stop(load)
  peers.stop(server)
  process.run { "sh", "-c", TO_SVG:format(data, peers.root, one.title, peers.root, one.file) }
end

--- Draws them; where perf is not there or not allowed, those that are there stay as they are.
-- @treturn ?string what went wrong
function flames.draw()
  if not process.has "perf" then return "perf is not there" end
  for _, one in ipairs(LOADS) do
    local done, problem = pcall(draw, one)
    if not done then return problem end
  end
end

return flames
