--- The harness of the specs that run real processes: servers, peers and commands, with keys and files in a folder that goes away.
--
-- What a spec file starts ends with `teardown(support.finish)`: it stops everything that this file started, removes the folder, and fails
-- where a server had crashed. Should the test run itself be killed, the kernel ends its children (setpriv --pdeathsig).
-- It knows the command line of korv and nothing of the protocol; what goes over a channel is in spec/peers.
--
-- Environment: KORV is the command (scripts/korv of this checkout), KORV_WRAP a command put before the server. The command is a script that
-- finds its interpreter, so valgrind needs --trace-children=yes. With KORV_WRAP, or under a checker (valgrind and ASan both come by
-- LD_PRELOAD), every deadline is ten times as long.
-- @module spec.support

local uv = require "luv"

local support = {}

local root = uv.fs_realpath(debug.getinfo(1, "S").source:match("^@(.-)spec/support%.lua$") .. ".")
local korv = os.getenv "KORV" or root .. "/scripts/korv"
local wrap = os.getenv "KORV_WRAP" or ""

--- The interpreter that sees Debian's python3-asyncssh.
support.python = "/usr/bin/python3"

--- What every deadline is multiplied by.
support.patience = wrap == "" and not os.getenv "LD_PRELOAD" and 1 or 10

--- The checkout's folder.
support.root = root

--- The command's path.
support.korv = korv

local DEADLINE = 15 -- seconds: for what takes a fraction of one

local started = {} -- every process that this file started
local folder       -- made when first asked for

--- Waits, running the event loop, until done() is true.
-- @tparam function done
-- @number[opt] seconds
-- @treturn boolean whether it was
function support.wait_for(done, seconds)
  local timer = uv.new_timer()
  local deadline = uv.hrtime() + (seconds or DEADLINE) * support.patience * 1e9
  timer:start(20, 20, function() end) -- done() may wait for what is no event of this loop's
  while not done() and uv.hrtime() < deadline do
    uv.run "once"
  end
  timer:close()
  return done()
end

-- Files ---------------------------------------------------------------------------------------------------------------------------

--- A path in the temporary folder.
-- @string name
function support.path(name)
  folder = folder or assert(uv.fs_mkdtemp((os.getenv "TMPDIR" or "/tmp") .. "/korv-spec-XXXXXX"))
  return folder .. "/" .. name
end

--- Writes a file in the temporary folder.
-- @string name
-- @string text
-- @treturn string its path
function support.write(name, text)
  local path = support.path(name)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
  return path
end

--- The text of a file, wherever it is; nil and a reason where it can't be read.
-- @string path
function support.read(path)
  local file, why = io.open(path, "rb")
  if not file then
    return nil, why
  end
  local text = file:read "a"
  file:close()
  return text
end

-- Processes -----------------------------------------------------------------------------------------------------------------------

local Process = {}
Process.__index = Process

local function collect(process, stream)
  local pipe = uv.new_pipe(false)
  process.open = process.open + 1
  return pipe, function()
    pipe:read_start(function(_, data)
      if data then
        process[stream] = process[stream] .. data
      else
        process.open = process.open - 1
        pipe:close()
      end
    end)
  end
end

--- Starts a command without waiting for it. Its output gathers in the fields stdout and stderr.
-- @tparam {string,...} argv
-- @tparam[opt] table options `stdin`: text for the command to read, or true to write to it later; `env`: a table of what to add;
-- `stderr`: a file descriptor, instead of gathering it
-- @treturn Process
function support.start(argv, options)
  options = options or {}
  local process = setmetatable({ argv = argv, stdout = "", stderr = "", open = 0 }, Process)
  local stdin = uv.new_pipe(false)
  local stdout, read_stdout = collect(process, "stdout")
  local stderr, read_stderr = options.stderr, function() end
  if not stderr then stderr, read_stderr = collect(process, "stderr") end
  local args = { "--pdeathsig", "KILL", "env" }
  for name, value in pairs(options.env or {}) do
    args[#args + 1] = name .. "=" .. value
  end
  table.move(argv, 1, #argv, #args + 1, args)
  local handle, pid = uv.spawn("setpriv", { args = args, stdio = { stdin, stdout, stderr } }, function(code, signal)
    process.code, process.signal = code, signal
    process.handle:close()
  end)
  if not handle then
    error("cannot start setpriv (of util-linux): " .. tostring(pid), 2)
  end
  process.handle, process.pid, process.stdin = handle, pid, stdin
  read_stdout()
  read_stderr()
  started[#started + 1] = process
  if type(options.stdin) == "string" then
    process:write(options.stdin)
  end
  if options.stdin ~= true then
    process:close_stdin()
  end
  return process
end

--- Writes to the process's stdin.
-- @string text
function Process:write(text)
  self.stdin:write(text)
end

--- Ends its stdin, once what was written has gone out.
function Process:close_stdin()
  local stdin = self.stdin
  if not stdin:is_closing() then
    stdin:shutdown(function() stdin:close() end)
  end
end

--- True once the process has ended and all its output was read.
function Process:ended()
  return self.code ~= nil and self.open == 0
end

--- Takes the next line off its stdout, waiting for it; nil where the process ends or the time is over.
-- @number[opt] seconds
function Process:line(seconds)
  local function found()
    return self.stdout:find("\n", 1, true) or self:ended()
  end
  support.wait_for(found, seconds)
  local line, rest = self.stdout:match "^(.-)\n(.*)$"
  self.stdout = rest or self.stdout
  return line
end

--- Waits for the end of the process. Past the deadline it is killed, and that is an error.
-- @number[opt] seconds
-- @treturn Process itself: code, signal, stdout, stderr
function Process:wait(seconds)
  if not support.wait_for(function() return self:ended() end, seconds) then
    self:kill()
    error(self:describe "did not end in time", 2)
  end
  return self
end

--- Kills it at once.
function Process:kill()
  if not self.code then
    uv.kill(self.pid, "sigkill")
    support.wait_for(function() return self:ended() end)
  end
end

--- Stops it: SIGTERM, and SIGKILL where that did not end it in time.
-- @treturn boolean whether it ended as it should: by itself, with status 0, or by the SIGTERM
function Process:stop()
  if not self.code then
    uv.kill(self.pid, "sigterm")
    support.wait_for(function() return self:ended() end, 5)
  end
  self:kill()
  return self.code == 0 and (self.signal == 0 or self.signal == 15)
end

--- What a failure message says of it.
-- @string what
function Process:describe(what)
  return ("%s %s (code %s, signal %s)\nstdout: %s\nstderr: %s"):format(table.concat(self.argv, " "), what, self.code, self.signal,
    self.stdout:sub(-2000), self.stderr:sub(-4000))
end

--- The memory that the process holds, in bytes.
function Process:rss_bytes()
  return tonumber(support.read("/proc/" .. self.pid .. "/status"):match "VmRSS:%s*(%d+) kB") * 1024
end

--- Whether a process is there and has not ended; one whose new parent does not care has, too.
-- @int pid
function support.is_running(pid)
  local stat = support.read("/proc/" .. pid .. "/stat")
  return stat ~= nil and stat:match "^.*%) (%S)" ~= "Z"
end

--- How many file descriptors a process has open; none where it is not there.
-- @int pid
function support.descriptors(pid)
  local count, open = 0, uv.fs_scandir(("/proc/%d/fd"):format(pid))
  while open and uv.fs_scandir_next(open) do count = count + 1 end
  return count
end

--- Runs a command to its end.
-- @tparam {string,...} argv
-- @tparam[opt] table options as for start, and `timeout` in seconds
-- @treturn Process ended: code, signal, stdout, stderr
function support.run(argv, options)
  return support.start(argv, options):wait(options and options.timeout)
end

-- Keys ----------------------------------------------------------------------------------------------------------------------------

--- A private key without a passphrase, made when first asked for; NAME.pub is beside it.
-- @string name
-- @treturn string its path
function support.key(name)
  local path = support.path(name)
  if not uv.fs_stat(path) then
    local made = support.run { "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path }
    assert(made.code == 0, made.stderr)
  end
  return path
end

--- The fingerprint of a key, as ssh-keygen writes it: SHA256:…
-- @string path of the private or public key
function support.fingerprint(path)
  return support.run({ "ssh-keygen", "-l", "-f", path }).stdout:match "SHA256:%S+"
end

--- An authorized_keys file that lets these keys in.
-- @string ... names as for key
-- @treturn string its path
function support.authorized_keys(...)
  local lines = {}
  for i, name in ipairs { ... } do
    lines[i] = support.read(support.key(name) .. ".pub")
  end
  return support.write("authorized_keys", table.concat(lines))
end

--- A known_hosts file that knows this server.
-- @tparam table server
-- @string[opt="known_hosts"] name of the file
-- @treturn string its path
function support.known_hosts(server, name)
  local key = support.read(server.host_key .. ".pub"):match "^%S+ %S+"
  local line = ("[127.0.0.1]:%d %s\n"):format(server.port, key)
  name = name or "known_hosts"
  if support.read(support.path(name)) == line then -- who was started just now may be reading it
    return support.path(name)
  end
  return support.write(name, line)
end

--- The command line of OpenSSH's `ssh`, kept from everything of this machine's: it has one key, and knows the server's and takes no other.
-- @tparam table server
-- @tparam table options those of ssh's own that are added, as a list; and `key`: a path, in place of that of "client"; `known_hosts`: one
-- @string ... the host, and what comes after it
-- @treturn {string,...}
function support.ssh(server, options, ...)
  local argv = { "ssh", "-F", "none", "-i", options.key or support.key "client", "-p", tostring(server.port), "-o", "IdentitiesOnly=yes",
    "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=/dev/null",
    "-o", "UserKnownHostsFile=" .. (options.known_hosts or support.known_hosts(server, "known_" .. server.port)) }
  table.move(options, 1, #options, #argv + 1, argv)
  return table.move({ ... }, 1, select("#", ...), #argv + 1, argv)
end

-- Servers -------------------------------------------------------------------------------------------------------------------------

--- A server's command line, after what KORV_WRAP puts before it.
-- @tparam {string,...} argv
-- @treturn {string,...}
function support.wrapped(argv)
  local all = {}
  for word in wrap:gmatch "%S+" do
    all[#all + 1] = word
  end
  return table.move(argv, 1, #argv, #all + 1, all)
end

local function await_ready(server, pattern, seconds)
  local line = server:line(seconds) or ""
  local port, fingerprint, kind = line:match(pattern)
  if not port then
    server:kill()
    error(server:describe(("did not say that it is ready, but %q"):format(line)), 3)
  end
  server.port, server.fingerprint, server.key_kind = tonumber(port), fingerprint, kind
  return server
end

--- Waits until a server says that it listens as `korv serve` does. It has to end well then.
-- @tparam Process server
-- @treturn Process it, with port, fingerprint, host_key
function support.listening(server)
  server.host_key = support.key "host"
  await_ready(server, "^korv: listening on 127%.0%.0%.1 port (%d+), host key (SHA256:%S+) %((%S+)%)$", DEADLINE)
  server.must_end_well = true
  return server
end

--- Starts `korv serve` on a free port and waits until it listens. It lets the key "client" in.
-- @string ... scripts to serve, from the checkout's folder
-- @treturn Process with port, fingerprint, host_key
function support.serve(...)
  local argv = { korv, "serve", "--host", "127.0.0.1", "--port", "0", "--host-key", support.key "host",
    "--authorized-keys", support.authorized_keys "client" }
  for _, script in ipairs { ... } do
    argv[#argv + 1] = root .. "/" .. script
  end
  return support.listening(support.start(support.wrapped(argv)))
end

--- Starts the first korv's server, in Python. It lets the key "client" in.
-- @treturn Process with port, host_key
function support.serve_python()
  local host_key = support.key "python_host"
  local server = support.start { support.python, root .. "/spec/peers/python_korv.py", "server", "--host-key", host_key,
    "--authorized-keys", support.authorized_keys "client" }
  server.host_key = host_key
  return await_ready(server, "^port (%d+)$", DEADLINE)
end

--- Ends what this file started and removes its folder. Fails where a korv server had ended by itself, or did not end well.
function support.finish()
  local complaints = {}
  for i = #started, 1, -1 do
    local process = started[i]
    local crashed = process.code ~= nil
    local well = process:stop()
    if process.must_end_well and (crashed or not well) then
      complaints[#complaints + 1] = process:describe(crashed and "had ended by itself" or "did not end well")
    end
    started[i] = nil
  end
  if folder then
    os.execute("rm -rf '" .. folder .. "'")
    folder = nil
  end
  uv.run "nowait"
  if complaints[1] then
    error(table.concat(complaints, "\n"), 0)
  end
end

return support
