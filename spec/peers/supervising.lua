--- A supervisor of plain_worker.lua: `lua5.4 supervising.lua FOLDER OPTIONS`. OPTIONS is a JSON object of korv.supervisor's options. It
-- tells `port N` once it listens, `started NAME` or `failed MESSAGE`, and what comes of the commands that it reads, one a line.
local root = arg[0]:match "^(.*)/spec/peers/[^/]*$"
local build = os.getenv "KORV_BUILD" or root .. "/build"
package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s"):format(root, root, package.path)
package.cpath = ("%s/?.so;%s"):format(build, package.cpath)

local core = require "korv.core"
local log = require "korv.log"
local supervisor = require "korv.supervisor"
local uv = require "luv"

log.format "text"
core.set_log(function(level, message) log[level]("%s", message) end)

local function tell(format, ...)
  print(format:format(...))
  io.stdout:flush()
end

local bound = uv.new_tcp()
assert(bound:bind("127.0.0.1", 0))
assert(bound:listen(128, function() end))
local port = bound:getsockname().port
local options = assert(core.json.decode(arg[2]))
options.sockets = { assert(core.dup_cloexec(bound:fileno())) }
bound:close()
options.argv = options.argv or { "lua5.4", root .. "/spec/peers/plain_worker.lua", arg[1] }

local parent = supervisor.new(options)

local told = 0 -- how often workers reported closed connections
local events = parent.workers[1].events
local on_message = events.message
function events.message(worker, message)
  if message.kind == "closed" then told = told + 1 end
  return on_message(worker, message)
end

local stdin = uv.new_pipe(false)

local function leave(format, ...)
  tell(format, ...)
  if not stdin:is_closing() then stdin:close() end
end

local commands = {}
function commands.reload() parent:reload(function(ok, message) tell("%s", ok and "reloaded" or "not reloaded: " .. message) end) end
function commands.keys() parent:reload_keys() end
function commands.drain(seconds) parent:drain(tonumber(seconds), function() leave "drained" end) end
function commands.stop()
  parent:stop()
  leave "stopped"
end
function commands.held()
  local list = {}
  for i, worker in ipairs(parent.workers) do list[i] = worker.connections end
  tell("held %s", table.concat(list, " "))
end
function commands.told() tell("told %d", told) end
function commands.ready()
  local n = 0
  for _, worker in ipairs(parent.workers) do n = n + (worker.state == "ready" and 1 or 0) end
  tell("ready %d", n)
end
function commands.counters()
  local sums = parent:counters()
  tell("counters %d %d %d", sums.connections, sums.requests, sums.generation)
end

assert(stdin:open(0))
local text = ""
stdin:read_start(function(_, bytes)
  if not bytes then return stdin:close() end
  text = text .. bytes
  for line in text:gmatch "([^\n]*)\n" do
    local command, argument = line:match "^(%S+) ?(.*)$"
    commands[command](argument)
  end
  text = text:match "[^\n]*$"
end)

tell("port %d", port)
parent:start(function(info, message)
  if info then tell("started %s", info.name) else leave("failed %s", message) end
end)
uv.run()
uv.run "nowait"
os.exit(0, true)
