--- What the specs of the supervisor share, on top of spec.support: supervisors of workers that speak lines in place of SSH
-- (spec/peers/supervising.lua, spec/peers/plain_worker.lua), and clients of these.
-- @module spec.supervised

local korv = require "korv"
local support = require "spec.support"
local uv = require "luv"

local supervised = {}

local clients = {}
local count = 0

-- Clients ----------------------------------------------------------------------------------------------------------------------------

local Client = {}
Client.__index = Client

--- Connects a client to whichever worker the supervisor chooses.
-- @tparam Process parent
-- @treturn Client
function supervised.connect(parent)
  local client = setmetatable({ tcp = uv.new_tcp(), text = "" }, Client)
  clients[#clients + 1] = client
  client.tcp:connect("127.0.0.1", parent.port, function(problem)
    client.problem, client.connected = problem, not problem
    if problem then return client:close() end
    client.tcp:read_start(function(failed, bytes)
      if bytes then client.text = client.text .. bytes else client:close(failed or "EOF") end
    end)
  end)
  return client
end

function Client:close(problem)
  self.closed, self.problem = true, self.problem or problem
  if not self.tcp:is_closing() then self.tcp:close() end
end

function Client:send(line)
  assert(support.wait_for(function() return self.connected or self.closed end))
  if not self.closed then self.tcp:write(line .. "\n") end
  return self
end

-- The next line that came; nil where the connection ended.
function Client:line(seconds)
  support.wait_for(function() return self.closed or self.text:find("\n", 1, true) end, seconds)
  local line, rest = self.text:match "^(.-)\n(.*)$"
  self.text = rest or self.text
  return line
end

function Client:ask(line) return self:send(line):line() end

-- Who serves this client.
function Client:who()
  local line = assert(self:ask "who", "no answer")
  local number, pid, generation, name = line:match "^(%d+) (%d+) (%d+) (%S+)$"
  return { number = tonumber(number), pid = tonumber(pid), generation = tonumber(generation), name = name }
end

-- Supervisors --------------------------------------------------------------------------------------------------------------------------

--- Says what workers do from now on, as an editor does it.
-- @tparam table parent with `folder`
-- @tparam table script as spec/peers/plain_worker.lua has it
function supervised.write_script(parent, script)
  local path = parent.folder .. "/script"
  local file <close> = assert(io.open(path .. "~", "w"))
  assert(file:write(korv.json.encode(script)))
  file:close()
  assert(os.rename(path .. "~", path))
end

--- Starts a supervisor whose socket is there; its workers are about to be.
-- @tparam table options of korv.supervisor
-- @tparam[opt] table script
-- @treturn Process with port, folder
function supervised.begin(options, script)
  count = count + 1
  local folder = support.path("supervised" .. count)
  assert(uv.fs_mkdir(folder, 448))
  supervised.write_script({ folder = folder }, script or { name = "first" })
  local parent = support.start(support.wrapped { "lua5.4", support.root .. "/spec/peers/supervising.lua", folder,
    korv.json.encode(options) }, { stdin = true })
  parent.folder = folder
  parent.port = tonumber((parent:line() or ""):match "^port (%d+)$") or error(parent:describe "did not listen")
  return parent
end

--- Starts a supervisor and waits for its workers.
-- @tparam table options of korv.supervisor
-- @tparam[opt] table script
-- @treturn Process with port, folder
function supervised.start(options, script)
  local parent = supervised.begin(options, script)
  local line = parent:line()
  if line ~= "started " .. (script or { name = "first" }).name then error(parent:describe("said " .. tostring(line))) end
  return parent
end

--- Has a supervisor do something.
-- @treturn string its answer
function supervised.order(parent, command)
  parent:write(command .. "\n")
  return parent:line()
end

--- Waits for a line of the log.
-- @return what matches the pattern
function supervised.wait_for_log(parent, pattern, seconds)
  local found = support.wait_for(function() return parent.stderr:find(pattern) ~= nil end, seconds)
  if not found then error(parent:describe("did not log " .. pattern), 2) end
  return parent.stderr:match(pattern)
end

--- What the workers have written down of their lives.
function supervised.events(parent) return support.read(parent.folder .. "/events") or "" end

--- Waits until the workers have written down what matches.
function supervised.wait_for_event(parent, pattern)
  local found = support.wait_for(function() return supervised.events(parent):find(pattern) ~= nil end)
  if not found then error(parent:describe("had no event " .. pattern .. " but\n" .. supervised.events(parent)), 2) end
end

--- How often a pattern is in a text.
function supervised.occurrences(text, pattern) return select(2, text:gsub(pattern, "")) end

--- One client for each worker, by the worker's number.
function supervised.crew(parent, workers)
  local by_number = {}
  for _ = 1, workers do
    local client = supervised.connect(parent)
    by_number[client:who().number] = client
  end
  for i = 1, workers do assert(by_number[i], "nobody reached worker " .. i) end
  return by_number
end

--- Waits until so many workers are ready.
function supervised.wait_until_ready(parent, workers)
  assert(support.wait_for(function() return supervised.order(parent, "ready") == "ready " .. workers end))
end

--- How many of these clients each worker serves, by its number.
function supervised.tally(list)
  local shares = {}
  for _, client in ipairs(list) do client:send "who" end
  for _, client in ipairs(list) do
    local number = tonumber(assert(client:line(), "no answer"):match "^%d+")
    shares[number] = (shares[number] or 0) + 1
  end
  return shares
end

--- So many clients.
function supervised.connections(parent, n)
  local list = {}
  for i = 1, n do list[i] = supervised.connect(parent) end
  return list
end

--- Ends the clients and everything that this file started. To be called after each spec.
function supervised.finish()
  for _, client in ipairs(clients) do client:close() end
  clients = {}
  support.finish()
end

return supervised
