--- A server's life as a process: signals, draining, the hand-over to the next server, and the units for systemd. What runs is
-- spec/peers/thing.lua.

local commanding = require "spec.commanding"
local core = require "korv.core"
local support = require "spec.support"
local uv = require "luv"

local THING = support.root .. "/spec/peers/thing.lua"

local alive = {} -- next servers: no child processes of ours

local function is_running(pid) return uv.kill(pid, 0) == 0 end

local function end_all()
  for _, pid in ipairs(alive) do uv.kill(pid, "sigkill") end
  for _, pid in ipairs(alive) do assert.is_true(support.wait_for(function() return not is_running(pid) end)) end
  alive = {}
  support.finish()
end

-- Takes the next line, which must be as the pattern says; returns its captures as numbers.
local function expect(server, pattern)
  local line = server:line() or "(nothing)"
  local found = table.pack(line:match("^" .. pattern .. "$"))
  assert(found[1], server:describe(("said %q where %q was to come"):format(line, pattern)))
  for i = 1, found.n do found[i] = tonumber(found[i]) end
  return table.unpack(found, 1, found.n)
end

local function expect_log(server, pattern)
  assert(support.wait_for(function() return server.stderr:find(pattern) end), server:describe("did not log " .. pattern))
end

local function parent_of(pid) return tonumber(support.read(("/proc/%d/status"):format(pid)):match "PPid:%s*(%d+)") end

-- What becomes of the next server.
local function fate(word) support.write("next", word) end

local function start(options, before, drain)
  fate "well"
  local env = { LUA_PATH = package.path, LUA_CPATH = package.cpath }
  for name, value in pairs(options or {}) do env[name] = value end
  local argv = before or {}
  table.move({ "lua5.4", THING, support.path "", drain or "20" }, 1, 4, #argv + 1, argv)
  return support.start(argv, { env = env })
end

-- Until it serves; notes its ports.
local function serving(server)
  local pid, first, second = expect(server, "serving (%d+) (%d+) (%d+)")
  server.first, server.second = first, second
  if pid ~= server.pid then alive[#alive + 1] = pid end
  return pid
end

local function signal(pid, name) assert.equal(0, uv.kill(pid, name)) end

-- A connection: client:ask(line) returns the line that is answered.
local Client = {}
Client.__index = Client

local function connect(port)
  local client = setmetatable({ socket = uv.new_tcp(), text = "" }, Client)
  client.socket:connect("127.0.0.1", port, function(err)
    client.error = err
    client.connected = true
    if err then return end
    client.socket:read_start(function(_, data)
      if data then client.text = client.text .. data else client.ended = true end
    end)
  end)
  support.wait_for(function() return client.connected end)
  return client
end

function Client:ask(line)
  assert.is_nil(self.error)
  self.socket:write(line .. "\n")
  local function answered() return self.text:find "\n" or self.ended end
  support.wait_for(answered)
  local answer, rest = self.text:match "^(.-)\n(.*)$"
  self.text = rest or self.text
  return answer
end

function Client:close()
  self.socket:close()
  uv.run "nowait"
end

local function ask(port, line)
  local client = connect(port)
  local answer = client:ask(line)
  client:close()
  return answer
end

-- A client that what is under way waits for.
local function hold(port)
  local client = connect(port)
  assert.equal("held", client:ask "hold")
  return client
end

local function ended(server)
  assert(support.wait_for(function() return server.code end), server:describe "did not end")
  return server.code
end

-- A server whose next one does not get ready, while that is awaited: itself, its process and the next one's.
local function with_a_mute_next()
  local server = start()
  local pid = serving(server)
  fate "mute"
  signal(pid, "sigusr2")
  local mute = expect(server, "mute (%d+)")
  alive[#alive + 1] = mute
  return server, pid, mute
end

describe("a service", function()
  teardown(end_all)

  for _, name in ipairs { "SIGTERM", "SIGINT" } do
    it("drains at " .. name, function()
      local server = start()
      serving(server)
      local client = hold(server.first)
      signal(server.pid, name:lower())
      assert.equal(20, (expect(server, "draining (%d+) %d+")))
      assert.matches("ECONNREFUSED", connect(server.first).error)
      assert.equal("done", client:ask "go")
      expect(server, "drained %d+")
      expect(server, "ended %d+")
      assert.equal(0, ended(server))
      assert.matches("info " .. name .. ": finishing what is under way, for 20 s at most", server.stderr)
      client:close()
    end)
  end

  it("is at its end once the time to drain is over", function()
    local server = start(nil, nil, "0.3")
    serving(server)
    local client = hold(server.first)
    signal(server.pid, "sigterm")
    expect(server, "draining 0.3 %d+")
    expect(server, "drained %d+")
    expect(server, "ended %d+")
    assert.equal(0, ended(server))
    client:close()
  end)

  it("ends at once at a second signal", function()
    local server = start()
    serving(server)
    local client = hold(server.first)
    signal(server.pid, "sigterm")
    expect(server, "draining 20 %d+")
    signal(server.pid, "sigint")
    expect(server, "stopped %d+")
    expect(server, "ended %d+")
    assert.equal(0, ended(server))
    expect_log(server, "warn SIGINT again")
    client:close()
  end)

  it("reloads keys and scripts at SIGHUP, and not while it drains", function()
    local server = start()
    serving(server)
    signal(server.pid, "sighup")
    expect(server, "keys")
    expect(server, "reload")
    local client = hold(server.first)
    signal(server.pid, "sigterm")
    expect(server, "draining 20 %d+")
    signal(server.pid, "sighup")
    client:ask "go"
    expect(server, "drained %d+")
    assert.equal(0, ended(server))
    client:close()
  end)
end)

describe("an upgrade", function()
  teardown(end_all)

  it("hands over the sockets, and the old server finishes what is under way", function()
    local server = start()
    local old = serving(server)
    local first, second = server.first, server.second
    local client = hold(first)
    signal(old, "sigusr2")
    local new = serving(server)
    assert.are_not.equal(old, new)
    assert.are_not.equal(old, parent_of(new))
    assert.same({ first, second }, { server.first, server.second })
    expect(server, "draining 20 %d+")
    assert.equal(tostring(new), ask(first, "pid"))
    assert.equal(tostring(new), ask(second, "pid"))
    assert.equal("done", client:ask "go")
    assert.equal(old, (expect(server, "drained (%d+)")))
    assert.equal(old, (expect(server, "ended (%d+)")))
    assert.equal(0, ended(server))
    assert.equal(tostring(new), ask(first, "pid"))
    client:close()
  end)

  it("can be had again and again, and refuses nobody", function()
    local server = start()
    local pid = serving(server)
    local running, asked, stopped = true, 0, false
    local answered = {}
    local function ask_on()
      local client = uv.new_tcp()
      client:connect("127.0.0.1", server.first, function(err)
        assert(not err, err)
        client:write "pid\n"
        client:read_start(function(_, data)
          client:close()
          asked = asked + 1
          answered[data or "nothing"] = true
          if running then ask_on() else stopped = true end
        end)
      end)
    end
    ask_on()
    for _ = 1, 5 do
      signal(pid, "sigusr2")
      local old = pid
      pid = serving(server)
      for _, pattern in ipairs { "draining 20 (%d+)", "drained (%d+)", "ended (%d+)" } do assert.equal(old, (expect(server, pattern))) end
      local before = asked
      assert.is_true(support.wait_for(function() return asked > before + 3 end))
      assert.is_true(answered[pid .. "\n"])
    end
    running = false
    assert.is_true(support.wait_for(function() return stopped end))
    signal(pid, "sigterm")
    expect(server, "draining 20 %d+")
  end)

  it("leaves the old server as it is where the next one ends first", function()
    local server = start()
    local pid = serving(server)
    fate "crash"
    signal(pid, "sigusr2")
    expect_log(server, "error the upgrade failed: the next server ended before it was ready; this server goes on")
    assert.equal(tostring(pid), ask(server.first, "pid"))
    fate "well"
    signal(pid, "sigusr2")
    assert.are_not.equal(pid, serving(server))
  end)

  it("kills a next server that does not get ready, and refuses another one meanwhile", function()
    local server, pid, mute = with_a_mute_next()
    signal(pid, "sigusr2")
    expect_log(server, "warn no upgrade: one is under way already")
    assert.equal(tostring(pid), ask(server.first, "pid"))
    expect_log(server, "error the upgrade failed: the next server was not ready within 0.5 s; this server goes on")
    assert.is_true(support.wait_for(function() return not is_running(mute) end))
    assert.equal(tostring(pid), ask(server.first, "pid"))
  end)

  it("leaves the old server as it is where there is no such command", function()
    fate "well"
    local folder = support.path "elsewhere/"
    uv.fs_mkdir(folder, 448)
    support.write("elsewhere/next", "wrong")
    local server = support.start({ "lua5.4", THING, folder }, { env = { LUA_PATH = package.path, LUA_CPATH = package.cpath } })
    local pid = serving(server)
    signal(pid, "sigusr2")
    expect_log(server, "error the upgrade failed: korv%-no%-such%-command: no such file or directory")
    assert.equal(tostring(pid), ask(server.first, "pid"))
  end)

  it("ends with the server that began it", function()
    local server, pid, mute = with_a_mute_next()
    local client = hold(server.first)
    signal(pid, "sigterm")
    expect(server, "draining 20 %d+")
    expect_log(server, "warn the upgrade is given up")
    client:ask "go"
    assert.equal(0, ended(server))
    client:close()
    assert.is_true(support.wait_for(function() return not is_running(mute) end))
  end)

  it("is refused by a server that is about to end", function()
    local server = start()
    local pid = serving(server)
    local client = hold(server.first)
    signal(pid, "sigterm")
    expect(server, "draining 20 %d+")
    signal(pid, "sigusr2")
    expect_log(server, "warn no upgrade: this server is about to end")
    client:ask "go"
    assert.equal(0, ended(server))
    client:close()
  end)

  it("takes a first signal for none while the old server drains", function()
    local server = start()
    local old = serving(server)
    local client = hold(server.first)
    signal(old, "sigusr2")
    serving(server)
    expect(server, "draining 20 %d+")
    signal(old, "sigterm")
    expect_log(server, "SIGTERM")
    assert.equal("done", client:ask "go")
    expect(server, "drained %d+")
    client:close()
  end)

  it("leaves nothing of itself to child processes", function()
    local server = start { LISTEN_FDS = "1", LISTEN_PID = "1" }
    serving(server)
    assert.equal("0 0", ask(server.first, "child"))
    signal(server.pid, "sigusr2")
    serving(server)
    expect(server, "draining 20 %d+")
    assert.equal("0 0", ask(server.first, "child"))
  end)
end)

describe("under systemd", function()
  -- Execs a command with a listening socket as file descriptor 3, and blocking, as systemd does.
  local ACTIVATE = [[
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
os.dup2(os.dup(listener.fileno()), 3, inheritable=True)
os.set_inheritable(3, True)
os.environ["LISTEN_PID"] = str(os.getpid() if sys.argv[1] == "ours" else 1)
os.environ["LISTEN_FDS"] = "1"
print("port", listener.getsockname()[1], flush=True)
os.execvp(sys.argv[2], sys.argv[2:])]]

  local function activated(whose, env)
    local server = start(env, { support.python, "-c", ACTIVATE, whose })
    server.given = expect(server, "port (%d+)")
    return server
  end

  teardown(end_all)

  it("takes the sockets that it is given", function()
    local server = activated "ours"
    local pid = serving(server)
    assert.same({ server.given, 0 }, { server.first, server.second })
    assert.equal(tostring(pid), ask(server.first, "pid"))
    assert.equal("0 0", ask(server.first, "child"))
    local info = support.read(("/proc/%d/fdinfo/3"):format(pid))
    assert.are_not.equal(0, tonumber(info:match "flags:%s*(%d+)", 8) & uv.constants.O_NONBLOCK, info)
  end)

  for _, workers in ipairs { "1", "2" } do
    it(("does not say that those are of all interfaces, with %s process(es)"):format(workers), function()
      local server = support.start { support.python, "-c", ACTIVATE, "ours", support.korv, "serve", "--workers", workers,
        "--host-key", support.key "host", "--authorized-keys", commanding.authorized(), commanding.script() }
      local port = expect(server, "port (%d+)")
      assert.equal(port, (expect(server, "korv: listening on the sockets it was given, port (%d+), host key .*")))
    end)
  end

  it("does not take those that are another process's", function()
    local server = activated "another"
    serving(server)
    assert.are_not.equal(server.given, server.first)
  end)

  it("says what is wrong with what it is given", function()
    local server = start({ KORV_SOCKETS = "1" }, { "sh", "-c", 'exec 3</dev/null "$@"', "sh" })
    assert.equal("unusable: the inherited file descriptor 3 is no socket that listens", server:line())
  end)

  it("tells of its life, and of the server that takes its place", function()
    local path = support.path "notify"
    local peer = support.start({ support.python, support.root .. "/spec/peers/notify_socket.py", path }, { stdin = true })
    assert.equal("bound", peer:line())
    local function told()
      local message = core.json.decode(assert(peer:line(), "nothing was told"))
      return table.concat(message.lines, " "), message.pid
    end
    local function told_of_change()
      for _ = 1, 20 do
        local text, sender = told()
        if text ~= "WATCHDOG=1" then return text, sender end
      end
      error "nothing was told but that it lives"
    end
    local function tells(pid, pattern)
      local text, sender = told_of_change()
      assert.equal(pid, sender)
      assert.matches("^" .. pattern .. "$", text)
    end

    local server = activated("ours", { NOTIFY_SOCKET = path, WATCHDOG_USEC = "1000000" })
    local old = serving(server)
    tells(old, "READY=1")
    assert.equal("0 0", ask(server.first, "child"))
    signal(old, "sighup")
    tells(old, "RELOADING=1 MONOTONIC_USEC=%d+")
    tells(old, "READY=1")
    expect(server, "keys")
    expect(server, "reload")
    signal(old, "sigusr2")
    local new = serving(server)
    local seen = {}
    for _ = 1, 2 do -- in whatever order
      local text, pid = told_of_change()
      seen[pid] = text
    end
    assert.same({ [old] = ("MAINPID=%d WATCHDOG=1"):format(new), [new] = "READY=1" }, seen)
    for _, pattern in ipairs { "draining 20 (%d+)", "drained (%d+)", "ended (%d+)" } do assert.equal(old, (expect(server, pattern))) end
    for _ = 1, 2 do
      local text, pid = told()
      assert.same({ "WATCHDOG=1", new }, { text, pid })
    end
    signal(new, "sigterm")
    tells(new, "STOPPING=1")
    assert.is_true(support.wait_for(function() return not is_running(new) end))
  end)
end)

describe("the units", function()
  local UNITS = support.root .. "/scripts/systemd/"

  -- The units as somebody has adapted them: with a command that there is.
  local function adapted()
    local text = support.read(UNITS .. "korv.service"):gsub("/usr/local/bin/korv", support.korv)
    support.write("korv.socket", support.read(UNITS .. "korv.socket"))
    return support.write("korv.service", text)
  end

  local function analyze(...)
    if not os.execute "command -v systemd-analyze >/dev/null" then return pending "systemd-analyze is not there" end
    local done = support.run { "systemd-analyze", ... }
    assert.equal(0, done.code, done.stdout .. done.stderr)
    return done.stdout .. done.stderr
  end

  teardown(support.finish)

  it("are understood by systemd", function()
    local output = analyze("verify", "--man=no", adapted())
    assert.is_nil(output and output:find "korv%.", output)
  end)

  it("leave the service little to do harm with", function() analyze("security", "--offline=yes", "--threshold=20", adapted()) end)
end)
