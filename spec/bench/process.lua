--- Processes, files and waiting for scripts/bench. What is started here ends with it; it knows neither servers nor rows.
-- @module bench.process

local uv = require "luv"

local process = {}

local STOP_S = 5

local running = {} -- handles by pid
local interrupted = false

--- Has wait_until raise at the next signal that would end this process.
function process.heed_signals()
  for _, name in ipairs { "sigint", "sigterm", "sighup" } do
    local signal = uv.new_signal()
    signal:unref()
    signal:start(name, function() interrupted = true end)
  end
end

--- The content of a file; "" where there is none.
-- @string path
function process.read(path)
  local file = io.open(path)
  if not file then return "" end
  local text = file:read "a"
  file:close()
  return text
end

--- Writes a file.
-- @string path
-- @string text
-- @treturn string path
function process.write(path, text)
  local file = assert(io.open(path, "w"))
  assert(file:write(text))
  assert(file:close())
  return path
end

--- Turns the loop until the condition holds or the time is up.
-- @func condition
-- @number seconds
-- @return what the condition says then
function process.wait_until(condition, seconds)
  local late = false
  local timer = uv.new_timer()
  timer:start(math.floor(seconds * 1000), 0, function() late = true end)
  while not (condition() or late or interrupted) do uv.run "once" end
  timer:close()
  if interrupted then error("interrupted", 0) end
  return condition()
end

--- Starts a command.
-- @tparam {string,...} command
-- @treturn table `handle`, `pid`, its `output` so far (stdout and stderr), and its `code` once it has ended and all of that is read
function process.start(command)
  local self = { output = "", open = 3, name = command[1] }
  local function closed()
    self.open = self.open - 1
    if self.open == 0 then self.code = self.status end
  end
  local out, err = uv.new_pipe(false), uv.new_pipe(false)
  local handle, pid = uv.spawn(command[1], { args = table.move(command, 2, #command, 1, {}), stdio = { nil, out, err } },
    function(status, signal)
      self.status = signal == 0 and status or 128 + signal
      running[self.pid] = nil
      self.handle:close()
      closed()
    end)
  if not handle then error(("%s: %s"):format(command[1], pid), 0) end
  self.handle, self.pid = handle, pid
  running[pid] = handle
  for _, pipe in ipairs { out, err } do
    pipe:read_start(function(_, data)
      if data then self.output = self.output .. data return end
      pipe:close()
      closed()
    end)
  end
  return self
end

--- Waits for the end of what was started.
-- @tparam table self
-- @number seconds
-- @treturn string its output; a failure raises
function process.finish(self, seconds)
  process.wait_until(function() return self.code end, seconds)
  if self.code ~= 0 then error(("%s: exit status %s\n%s"):format(self.name, self.code, self.output), 0) end
  return self.output
end

--- Runs a command to its end.
-- @tparam {string,...} command
-- @treturn string its output; a failure raises
function process.run(command) return process.finish(process.start(command), 600) end

--- Whether a command is there.
-- @string name
function process.has(name)
  for folder in (os.getenv "PATH" .. ":/usr/sbin"):gmatch "[^:]+" do
    if uv.fs_access(folder .. "/" .. name, "X") then return true end
  end
  return false
end

--- Has what was started end, and waits for it.
-- @tparam table self
function process.stop(self)
  if self.code then error(("%s has ended by itself, exit status %d\n%s"):format(self.name, self.code, self.output), 0) end
  self.handle:kill "sigterm"
  if process.wait_until(function() return self.code end, STOP_S) then return end
  self.handle:kill "sigkill"
  error(("%s did not stop within %d s"):format(self.name, STOP_S), 0)
end

--- Ends all that runs. A server may have processes of its own, so it is asked to end before it is made to.
function process.stop_all()
  interrupted = false
  for _, signal in ipairs { "sigterm", "sigkill" } do
    for _, handle in pairs(running) do handle:kill(signal) end
    if process.wait_until(function() return next(running) == nil end, STOP_S) then break end
  end
end

return process
