--- The user's own ssh as a client's transport: `ssh -s HOST korv`, so that ~/.ssh/config, the agent, jump hosts and hardware keys come
-- with it. Has the methods of the core's connection: send, keep_loop, close.
-- @module korv.ssh

local core = require "korv.core"
local uv = require "luv"

local Transport = {}
Transport.__index = Transport

local STDERR_BYTES = 4096 -- of what ssh says, for the message when it fails

-- A path as a value of ssh's configuration, which has blanks between several, quotes, and % before what it puts in itself.
local function quoted(path) return '"' .. path:gsub("%%", "%%%%"):gsub('[\\"]', "\\%0") .. '"' end

local function arguments(options, given)
  local list = { "-o", "BatchMode=yes", "-o", ("ConnectTimeout=%d"):format(math.max(1, math.ceil(options.timeout))) }
  local function add(...)
    for _, word in ipairs { ... } do list[#list + 1] = word end
  end
  if given.port then add("-p", tostring(given.port)) end
  if given.user then add("-l", given.user) end
  for _, key in ipairs(given.client_keys or {}) do add("-i", key) end
  if given.known_hosts then add("-o", "UserKnownHostsFile=" .. quoted(given.known_hosts)) end
  if given.known_hosts == false then add("-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no") end
  if given.accept_new then add("-o", "StrictHostKeyChecking=accept-new") end
  add("-s", "--", given.host or "localhost", "korv")
  return list
end

local function end_with(self, name, message)
  if self.over then return end
  self.over = true
  self.patience:stop()
  if not self.process:is_closing() then self.process:kill "sigterm" end -- it is closed when it has ended, which has to be noticed
  for _, pipe in ipairs { self.stdin, self.stdout, self.errors } do
    if not pipe:is_closing() then pipe:close() end
  end
  self.options.closed(name, message)
end

-- Every message that is at hand.
local function deliver(self)
  local message, problem, name = self.reader:next()
  while message or problem do
    if problem then return end_with(self, name, problem) end
    if self.opened then
      self.options.message(message)
    else
      self.opened = true
      self.patience:stop()
      self.options.open(self, "ssh")
    end
    if self.over then return end
    message, problem, name = self.reader:next()
  end
end

local function on_stdout(self, problem, bytes)
  if self.over then return end
  if not bytes then return end_with(self, "ECONNRESET", problem or self:reason()) end
  self.reader:feed(bytes)
  deliver(self)
end

--- What ssh said last, or that it ended.
function Transport:reason()
  local said = self.stderr:gsub("%s+$", ""):gsub("%s*\n%s*", "; ")
  return said ~= "" and "ssh: " .. said or "ssh ended"
end

--- Sends a message as a line.
-- @tparam table message
-- @treturn ?boolean true
-- @treturn ?string message
-- @treturn ?string name
function Transport:send(message)
  local text, problem, name = core.json.encode(message)
  local most = self.options.max_request_bytes
  if most and text and #text > most then text, problem = nil, ("value: its JSON form is larger than %d bytes"):format(most) end
  if not text then
    return nil, (problem:gsub("^value", "request")), problem:find "its JSON form is larger than" and "EMSGSIZE" or name
  end
  self.stdin:write(text .. "\n")
  return true
end

--- Whether an idle connection keeps the loop running.
-- @tparam boolean keep
function Transport:keep_loop(keep)
  for _, handle in ipairs(self.handles) do
    if not handle:is_closing() then handle[keep and "ref" or "unref"](handle) end
  end
end

--- Ends ssh; `closed` follows at once.
function Transport:close()
  end_with(self, "ECLOSED", "the client was closed")
  if not uv.loop_mode() then uv.run "nowait" end -- luv does not survive the end of a program with handles that are half closed
end

--- Stops or goes on reading.
-- @tparam boolean on
function Transport:pause(on)
  if self.over then return end
  if on then
    self.stdout:read_stop()
  else
    self:listen()
  end
end

local function spawn(self, given)
  local process, problem = uv.spawn("ssh", { args = arguments(self.options, given), stdio = { self.stdin, self.stdout, self.errors } },
    function()
      if self.process and not self.process:is_closing() then self.process:close() end
    end)
  if not process then return nil, "cannot run ssh: " .. tostring(problem), "ENOENT" end
  self.process = process
  self.handles[#self.handles + 1] = process
  return true
end

function Transport:listen()
  self.stdout:read_start(function(problem, bytes) on_stdout(self, problem, bytes) end)
end

-- ssh does not say when it has connected. So we send a message without a field, which runs nothing and is refused, and the refusal
-- tells that the server is there.
local function begin(self)
  self:listen()
  self.errors:read_start(function(_, bytes)
    if bytes then self.stderr = (self.stderr .. bytes):sub(-STDERR_BYTES) end
  end)
  self.patience = core.timer(function()
    local message = ("ssh to %s did not bring us to a korv server within %g s"):format(self.given.host or "localhost", self.options.timeout)
    end_with(self, "ETIMEDOUT", message)
  end)
  if self.opened then return end
  self.patience:start(self.options.timeout)
  self.stdin:write "{}\n"
end

--- Starts ssh.
-- @tparam table options as for the core's dial: `timeout` and the functions `open`, `message`, `closed`
-- @tparam table given the options as the user gave them: what is not there is left to ssh's configuration
-- @tparam[opt] boolean opened whether the server is known to be there: then it is not asked
-- @treturn ?Transport
-- @treturn ?string message
-- @treturn ?string name
local function start(options, given, opened)
  local self = setmetatable({ options = options, given = given, opened = opened, stderr = "", reader = core.reader(options) }, Transport)
  self.stdin, self.stdout, self.errors = uv.new_pipe(false), uv.new_pipe(false), uv.new_pipe(false)
  self.handles = { self.stdin, self.stdout, self.errors }
  local ok, message, name = spawn(self, given)
  if not ok then
    for _, handle in ipairs(self.handles) do handle:close() end
    return nil, message, name
  end
  begin(self)
  return self
end

--- A channel beside this one: another ssh, which shares the connection where the user's configuration says so (ControlMaster).
-- @tparam function message called with each message
-- @tparam function closed called at its end with name and message
-- @treturn ?Transport
-- @treturn ?string message
-- @treturn ?string name
function Transport:channel(message, closed)
  local options = setmetatable({ message = message, closed = closed }, { __index = self.options })
  return start(options, self.given, true)
end

return start
