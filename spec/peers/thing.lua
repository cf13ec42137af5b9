--- What service.run is given in its spec: something that listens, holds requests under way, and prints what is done to it.
-- `lua5.4 thing.lua FOLDER [DRAIN]`. FOLDER/next says how the next server fares: `crash`, `mute` (it never gets ready), `wrong` (no such
-- command), or anything else: well. A connection is answered line by line: `pid`; `hold`, a request that ends with the line `go`.
local core = require "korv.core"
local service = require "korv.service"
require "korv.log".format "text"
local uv = require "luv"

local folder, drain = arg[1], tonumber(arg[2])

local function say(...)
  print(string.format(...))
  io.stdout:flush()
end

local function after(seconds, fn)
  local timer = uv.new_timer()
  timer:start(math.floor(seconds * 1000), 0, function()
    timer:close()
    fn()
  end)
  return timer
end

after(120, function() os.exit(9) end):unref() -- whatever becomes of the spec
local file = io.open(folder .. "/next")
local fate = file and file:read "l"
if file then file:close() end
service._ready_seconds, service._linger_seconds = 0.5, 0.1

local inherited, message = service.inherited()
if message then
  say("unusable: %s", message)
  os.exit(1)
end
if inherited and fate == "crash" then os.exit(3) end
if inherited and fate == "mute" then
  say("mute %d", uv.os_getpid())
  uv.sleep(60000)
end

local listeners, clients, held, drained = {}, {}, 0, nil

local function settle()
  if not drained or held > 0 then return end
  say("drained %d", uv.os_getpid())
  for client in pairs(clients) do client:close() end
  local done = drained
  drained = nil
  done()
end

local answer = {}

function answer.pid() return math.tointeger(uv.os_getpid()) end

function answer.hold()
  held = held + 1
  return "held"
end

function answer.go()
  held = held - 1
  return "done"
end

-- What a child process would be told of the sockets, and which of this process's descriptors it gets.
function answer.child()
  local pipe = assert(io.popen [[
    printenv | grep -cE '^(KORV_SOCKETS|LISTEN_|NOTIFY_|WATCHDOG_)'
    ls -l /proc/self/fd | grep -cE ' [0-9]*[3-9] -> socket']])
  local variables, sockets = pipe:read("n", "n")
  pipe:close()
  return ("%d %d"):format(variables, sockets)
end

local function serve(listener)
  local client, rest = uv.new_tcp(), ""
  listener:accept(client)
  clients[client] = true
  client:read_start(function(_, data)
    if not data then
      clients[client] = nil
      return client:close()
    end
    rest = rest .. data
    for line in rest:gmatch "(%l+)\n" do client:write(answer[line]() .. "\n", settle) end
    rest = rest:match "[^\n]*$"
  end)
end

local thing = { sockets = {} }

local function listen(listener)
  assert(listener:listen(128, function() serve(listener) end))
  listeners[#listeners + 1] = listener
  thing.sockets[#thing.sockets + 1] = listener:fileno()
end

function thing.reload_keys() say "keys" end

function thing.reload(_, done)
  say "reload"
  after(0.1, function() done(nil, "app.lua:1: an error") end)
end

function thing.leave_sockets()
  for _, listener in ipairs(listeners) do listener:close() end
  listeners = {}
end

function thing.drain(_, seconds, done)
  thing.leave_sockets()
  say("draining %g %d", seconds, uv.os_getpid())
  drained = done
  after(seconds, function()
    held = 0
    settle()
  end):unref()
  settle()
end

function thing.stop()
  say("stopped %d", uv.os_getpid())
  for client in pairs(clients) do client:close() end
end

for _, fd in ipairs(inherited or {}) do
  local listener = uv.new_tcp()
  assert(listener:open(fd))
  listen(listener)
end
if not inherited then
  for _ = 1, 2 do
    local listener = uv.new_tcp()
    assert(listener:bind("127.0.0.1", 0))
    core.inherit(listener:fileno())
    listen(listener)
  end
end
local function announce()
  say("serving %d %d %d", uv.os_getpid(), listeners[1]:getsockname().port, listeners[2] and listeners[2]:getsockname().port or 0)
end

service.run(thing, { drain = drain, argv = fate == "wrong" and { "korv-no-such-command" } or nil, announce = announce })
say("ended %d", uv.os_getpid())
