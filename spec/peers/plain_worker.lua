--- A worker whose server speaks lines over TCP instead of SSH: `lua5.4 plain_worker.lua FOLDER`. What it "loads" is FOLDER/script, a JSON
-- object: `name` is what it answers with; `slow` and `start_slow` are seconds that a reload and a start take; `fail`, `die` and `hang` are
-- the number of the worker in which loading fails, ends the process or takes too long. What happens goes to FOLDER/events.
local root = arg[0]:match "^(.*)/spec/peers/[^/]*$"
local build = os.getenv "KORV_BUILD" or root .. "/build"
package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s"):format(root, root, package.path)
package.cpath = ("%s/?.so;%s"):format(build, package.cpath)

local core = require "korv.core"
local uv = require "luv"

local folder = arg[1]
local number, born_as = tonumber(os.getenv "KORV_WORKER"), tonumber(os.getenv "KORV_GENERATION")

local function note(format, ...)
  local file <close> = assert(io.open(folder .. "/events", "a"))
  assert(file:write(number, " ", format:format(...), "\n"))
end

local noticed -- tells the watcher of a change
package.preload["korv.watch"] = function()
  return { new = function(fn)
    noticed = fn
    return { set = function(_, watched) note("watch %s", watched) end }
  end }
end

local function later(seconds, fn)
  local timer = uv.new_timer()
  timer:start(math.ceil(seconds * 1000), 0, function()
    timer:close()
    fn()
  end)
end

local function read_script()
  local file <close> = assert(io.open(folder .. "/script"))
  return assert(core.json.decode(file:read "a"))
end

local server = { connections = {}, requests = 0 }

function server.listen(_, sockets)
  assert(#sockets == 0, "a worker listens on nothing")
  return server
end

-- Loads; done is called with a generation, or nil and a message.
local function load(of, seconds, done)
  local script = read_script()
  later(script.hang == number and 6 or seconds(script) or 0, function()
    if script.die == number then os.exit(3) end
    if script.fail == number then return done(nil, (script.message or "it is broken in " .. number) .. "\xff") end
    done { number = of, name = script.name }
  end)
end

function server.prepare(_, of, done)
  note("prepare %d", of)
  load(of, function(script) return script.slow end, done)
end

function server:commit(generation)
  note("commit %d", generation.number)
  self.generation = generation
end

function server.discard(_, generation) note("discard %d", generation.number) end
function server.reload_keys() note "keys" end
function server.watched() return "everything" end

function server:counters() return { connections = self:count(), requests = self.requests, generation = self.generation.number } end

function server:count()
  local n = 0
  for _ in pairs(self.connections) do n = n + 1 end
  return n
end

local commands = {}

function commands.who(answer)
  answer("%d %d %d %s", number, uv.os_getpid(), server.generation.number, server.generation.name)
end
function commands.work(answer, seconds) later(tonumber(seconds), function() answer "done" end) end
function commands.block() uv.sleep(60000) end
function commands.exit(_, status) os.exit(tonumber(status)) end
function commands.reload(answer)
  server.coordinate(function(ok, message) answer("%s", ok and "reloaded" or message) end)
end
function commands.changed(answer, what)
  if noticed then noticed(what) end
  answer(noticed and "told" or "nobody watches here")
end
function commands.inherited(answer)
  local list <close> = assert(io.popen "ls -l /proc/self/fd; echo KORV_WORKER=$KORV_WORKER$KORV_GENERATION")
  answer("%s", list:read "a":gsub("\n", ";"))
end

local function close(tcp)
  if not server.connections[tcp] then return end
  server.connections[tcp] = nil
  tcp:close()
  server.on_closed(1)
  if server.drained and server:count() == 0 then server.drained() end
end

local function on_line(tcp, line)
  local connection = server.connections[tcp]
  local command, argument = line:match "^(%S+) ?(.*)$"
  server.requests, connection.busy = server.requests + 1, connection.busy + 1
  commands[command](function(format, ...)
    if not server.connections[tcp] then return end
    tcp:write(format:format(...) .. "\n", function()
      connection.busy = connection.busy - 1
      if server.drained and connection.busy == 0 then close(tcp) end
    end)
  end, argument)
end

function server:adopt(fd)
  local tcp = uv.new_tcp()
  assert(tcp:open(assert(core.dup_cloexec(fd))))
  local connection = { text = "", busy = 0 }
  self.connections[tcp] = connection
  tcp:read_start(function(_, bytes)
    if not bytes then return close(tcp) end
    connection.text = connection.text .. bytes
    for line in connection.text:gmatch "([^\n]*)\n" do on_line(tcp, line) end
    connection.text = connection.text:match "[^\n]*$"
  end)
  return true
end

function server:drain(seconds, done)
  note("drain %g", seconds)
  self.drained = function()
    self.drained = function() end
    done()
  end
  for tcp, connection in pairs(self.connections) do
    if connection.busy == 0 then close(tcp) end
  end
  if self:count() == 0 then return self.drained() end
  later(seconds, function()
    for tcp in pairs(self.connections) do close(tcp) end
  end)
end

local generation, problem
note("load %d", born_as)
load(born_as, function(script) return script.start_slow end, function(loaded, message)
  generation, problem = loaded, message
end)
uv.run()
if not generation then
  io.stderr:write("plain_worker: ", tostring(problem), "\n")
  os.exit(1)
end
server.generation = generation
note("start %d %d", generation.number, uv.os_getpid())
local ok, message = require "korv.worker".run(server, { info = { name = generation.name }, drain = 5 })
if not ok then io.stderr:write("plain_worker: ", message, "\n") end
os.exit(ok and 0 or 1, true)
