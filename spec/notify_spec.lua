--- What systemd is told, and when: a notify socket of the spec's own takes systemd's place.

local core = require "korv.core"
local support = require "spec.support"
local uv = require "luv"

local NOTIFIER = support.root .. "/spec/peers/notifier.lua"

local count = 0

-- A socket to be told at, and a reader of the datagrams that come.
local function listen(path, ...)
  count = count + 1
  path = path or support.path("notify" .. count)
  local peer = support.start({ support.python, support.root .. "/spec/peers/notify_socket.py", path, ... }, { stdin = true })
  assert.equal("bound", peer:line())
  return path, peer
end

-- The next datagram: its lines joined, and who sent it.
local function next_message(peer)
  local told = core.json.decode(assert(peer:line(), "nothing was told"))
  return table.concat(told.lines, "|"), told.pid
end

-- Runs the notifier to its end; the environment's variables are given by `env`.
local function run(env, ...)
  env.LUA_PATH, env.LUA_CPATH = package.path, package.cpath
  local done = support.run({ "lua5.4", NOTIFIER, ... }, { env = env })
  assert.equal(0, done.code, done.stderr)
  return done.stdout, done.stderr
end

describe("core.notify", function()
  teardown(support.finish)

  it("sends a datagram to a path", function()
    local path, peer = listen()
    assert.is_true(core.notify(path, "READY=1\nSTATUS=x"))
    assert.equal("READY=1|STATUS=x", (next_message(peer)))
  end)

  it("sends to a name that is in no file system", function()
    local path, peer = listen(("@korv-spec-%d-%d"):format(uv.os_getpid(), os.time()))
    assert.is_true(core.notify(path, "READY=1"))
    assert.equal("READY=1", (next_message(peer)))
  end)

  it("says why it cannot", function()
    for path, name in pairs { [support.path "nobody"] = "ENOENT", ["relative"] = "EINVAL", [""] = "EINVAL", ["@"] = "EINVAL",
      ["/" .. ("x"):rep(107)] = "EINVAL", ["/" .. ("x"):rep(106)] = "ENOENT" } do
      local ok, message, got = core.notify(path, "x")
      assert.same({ nil, name, "string" }, { ok, got, type(message) }, path)
    end
  end)

  it("does not wait where nobody reads", function()
    local path = listen(nil, "later")
    local ok, name
    for _ = 1, 10000 do
      ok, _, name = core.notify(path, ("x"):rep(1000))
      if not ok then break end
    end
    assert.same({ nil, "EAGAIN" }, { ok, name })
  end)
end)

describe("notify", function()
  local path, peer

  setup(function() path, peer = listen() end)
  teardown(support.finish)

  it("does nothing where nobody asked", function()
    local _, stderr = run({}, "ready", "reloading", "stopping", "status=x", "main_pid=1", "next")
    assert.equal("", stderr)
  end)

  it("tells of each state", function()
    run({ NOTIFY_SOCKET = path }, "ready", "reloading", "ready", "status=one\ntwo", "stopping")
    assert.equal("READY=1", (next_message(peer)))
    local usec = next_message(peer):match "^RELOADING=1|MONOTONIC_USEC=(%d+)$"
    assert.is_true(math.abs(tonumber(usec) - uv.hrtime() // 1000) < 60e6, usec)
    assert.equal("READY=1", (next_message(peer)))
    assert.equal("STATUS=one two", (next_message(peer)))
    assert.equal("STOPPING=1", (next_message(peer)))
  end)

  it("feeds the watchdog at half its interval, from the loop", function()
    run({ NOTIFY_SOCKET = path, WATCHDOG_USEC = "100000" }, "ready", "wait=0.22", "block=0.5", "stopping")
    assert.equal("READY=1", (next_message(peer)))
    local fed = 0
    local message = next_message(peer)
    while message == "WATCHDOG=1" do
      fed, message = fed + 1, next_message(peer)
    end
    assert.equal("STOPPING=1", message)
    assert.is_true(fed >= 2 and fed <= 5, fed .. " times fed")
  end)

  it("feeds no watchdog that is another process's, or none's", function()
    for _, env in ipairs { { WATCHDOG_USEC = "20000", WATCHDOG_PID = "1" }, { WATCHDOG_USEC = "no number" }, { WATCHDOG_USEC = "0" } } do
      env.NOTIFY_SOCKET = path
      run(env, "ready", "wait=0.1", "stopping")
      assert.equal("READY=1", (next_message(peer)))
      assert.equal("STOPPING=1", (next_message(peer)))
    end
  end)

  it("keeps the variables from child processes, but for the next server", function()
    local stdout = run({ NOTIFY_SOCKET = path, WATCHDOG_USEC = "3000000" }, "take", "print=NOTIFY_SOCKET", "print=WATCHDOG_USEC",
      "print=WATCHDOG_PID", "next")
    assert.equal(("NOTIFY_SOCKET=\nWATCHDOG_USEC=\nWATCHDOG_PID=\nnext %s 3000000\n"):format(path), stdout)
  end)

  it("is silent once another process is the server", function()
    run({ NOTIFY_SOCKET = path, WATCHDOG_USEC = "20000" }, "ready", "main_pid=42", "stopping", "wait=0.1", "ready")
    run({ NOTIFY_SOCKET = path }, "status=later")
    local message = next_message(peer)
    assert.equal("READY=1", message)
    repeat message = next_message(peer) until message ~= "WATCHDOG=1"
    assert.equal("MAINPID=42|WATCHDOG=1", message)
    assert.equal("STATUS=later", (next_message(peer)))
  end)

  it("tries again where systemd is busy, in order", function()
    local busy, reader = listen(nil, "later")
    repeat until not core.notify(busy, "junk")
    local notifier = support.start({ "lua5.4", NOTIFIER, "ready", "status=x", "wait=2" },
      { env = { NOTIFY_SOCKET = busy, LUA_PATH = package.path, LUA_CPATH = package.cpath } })
    assert.is_false(support.wait_for(function() return notifier:ended() end, 0.3))
    reader:close_stdin()
    local message
    repeat message = next_message(reader) until message ~= "junk"
    assert.equal("READY=1", message)
    assert.equal("STATUS=x", (next_message(reader)))
    assert.equal(0, notifier:wait().code, notifier.stderr)
    assert.equal("", notifier.stderr)
  end)

  it("warns where nobody can be told, and goes on", function()
    local _, stderr = run({ NOTIFY_SOCKET = support.path "gone" }, "ready")
    assert.matches("warn.*systemd cannot be told how the server does: .*gone: no such file or directory", stderr)
  end)
end)
