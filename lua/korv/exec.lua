--- Runs a program while others are served.
-- @module korv.exec

local task = require "korv.task"
local uv = require "luv"

local MOST_BYTES = 16 * 1024 * 1024 -- of each of stdout and stderr, unless told otherwise

local OPTIONS = { stdin = "string", cwd = "string", env = "table", max_bytes = "number" }

local function is_text(value) return type(value) == "string" or type(value) == "number" end

-- luv would make empty texts of what is none, and end the arguments at a nil.
local function check_arguments(argv)
  local last = 0
  for key in pairs(argv) do last = math.type(key) == "integer" and math.max(last, key) or last end
  for i = 2, last do
    if not is_text(argv[i]) then error(("korv.exec: argument %d must be a string, not a %s"):format(i, type(argv[i])), 4) end
  end
end

local function check_environment(env)
  for name, value in pairs(env) do
    if type(name) ~= "string" or not is_text(value) then
      error(("korv.exec: env must be a table of names to strings, as in { LANG = \"C\" } (got %s = %s)"):format(name, value), 4)
    end
  end
end

local function check(argv, options)
  if type(argv) ~= "table" or type(argv[1]) ~= "string" then
    error("korv.exec: the program and its arguments must be a list, as in korv.exec { \"uptime\", \"-p\" }", 3)
  end
  for name, value in pairs(options) do
    if not OPTIONS[name] then error(("korv.exec: unknown option '%s'"):format(tostring(name)), 3) end
    if type(value) ~= OPTIONS[name] then error(("korv.exec: %s must be a %s, not a %s"):format(name, OPTIONS[name], type(value)), 3) end
  end
  check_arguments(argv)
  check_environment(options.env or {})
end

-- Where a text of a client's is an argument, it is not to be cut off at a zero byte, which is what the system would do.
local function find_zero(argv, options)
  for i, text in ipairs(argv) do
    if tostring(text):find("\0", 1, true) then return ("argument %d"):format(i) end
  end
  for name, text in pairs(options.env or {}) do
    if (name .. text):find("\0", 1, true) then return "a variable of env" end
  end
  return options.cwd and options.cwd:find("\0", 1, true) and "cwd"
end

local function environment(added)
  if not added then return nil end
  local list, seen = {}, {}
  for name, value in pairs(added) do
    list[#list + 1] = name .. "=" .. tostring(value)
    seen[name] = true
  end
  for name, value in pairs(uv.os_environ()) do
    if not seen[name] then list[#list + 1] = name .. "=" .. value end
  end
  return list
end

local function close(handle)
  if not handle:is_closing() then handle:close() end
end

-- Gathers what comes out of a pipe; done is called at its end.
local function gather(run, pipe, most, done)
  local parts, bytes = {}, 0
  pipe:read_start(function(_, chunk)
    if chunk then
      bytes = bytes + #chunk
      parts[#parts + 1] = chunk
      if bytes > most and not run.problem then run:kill(("it wrote more than max_bytes (%d)"):format(most)) end
    else
      close(pipe)
      done(table.concat(parts))
    end
  end)
end

local Run = {}
Run.__index = Run

-- Ends the program. What it started itself and left behind may still hold its pipes open: these are not waited for.
function Run:kill(reason)
  self.problem = self.problem or reason
  if not self.process:is_closing() then self.process:kill "sigkill" end
  for _, pipe in ipairs(self.pipes) do close(pipe) end
  self.stdout, self.stderr = self.stdout or "", self.stderr or ""
  self:settle()
end

-- Once it has ended and its output is read.
function Run:settle()
  if not (self.code and self.stdout and self.stderr) then return end
  if self.problem then
    self.resume(nil, ("%s: %s"):format(self.name, self.problem), "E2BIG")
  else
    self.resume { code = self.code, signal = self.signal ~= 0 and self.signal or nil, stdout = self.stdout, stderr = self.stderr }
  end
end

local function start(argv, options, resume)
  local zero = find_zero(argv, options)
  if zero then
    return nil, ("%s: %s has a zero byte in it, which no program can be given"):format(argv[1]:gsub("\0", "\\0"), zero), "EINVAL"
  end
  local stdin, stdout, stderr = uv.new_pipe(false), uv.new_pipe(false), uv.new_pipe(false)
  local run = setmetatable({ name = argv[1], resume = resume, pipes = { stdin, stdout, stderr } }, Run)
  local process, problem, name = uv.spawn(argv[1], {
    args = table.move(argv, 2, #argv, 1, {}), cwd = options.cwd, env = environment(options.env), stdio = { stdin, stdout, stderr },
  }, function(code, signal)
    close(run.process)
    run.code, run.signal = code, signal
    run:settle()
  end)
  if not process then
    for _, pipe in ipairs(run.pipes) do close(pipe) end
    if not uv.loop_mode() then uv.run "nowait" end -- luv does not survive the end of a program with handles that are half closed
    if options.cwd and not uv.fs_stat(options.cwd) then problem = ("its folder %s does not exist"):format(options.cwd) end
    return nil, ("%s: %s"):format(argv[1], problem), name
  end
  run.process = process
  local most = options.max_bytes or MOST_BYTES
  gather(run, stdout, most, function(text) run.stdout = text run:settle() end)
  gather(run, stderr, most, function(text) run.stderr = text run:settle() end)
  if options.stdin then stdin:write(options.stdin) end
  stdin:shutdown(function() close(stdin) end)
  return run
end

--- Runs a program and waits for its end; others are served meanwhile. No shell is involved. Where the endpoint is cancelled the program is
-- killed.
-- @function exec
-- @tparam {string,...} argv the program, searched for in PATH, and its arguments
-- @tparam[opt] table options `stdin` a text for it to read, `cwd` its folder, `env` variables beside those of the server, `max_bytes` of
-- each of its outputs (16 MiB): with more it is killed
-- @treturn ?table `code`, `signal` (nil unless one ended it), `stdout`, `stderr`
-- @treturn ?string message where it could not be run
-- @treturn ?string name, such as `ENOENT`
-- @usage local uptime = korv.exec { "uptime", "-p" }
return function(argv, options)
  options = options or {}
  check(argv, options)
  return task.wait(function(resume)
    local run, message, name = start(argv, options, resume)
    if not run then
      resume(nil, message, name)
      return
    end
    return function() run:kill "cancelled" end
  end)
end
