--- The real server's hand-over to the next one (SIGUSR2), sockets that systemd passes on, and what a notify socket is told.

local cjson = require "cjson"
local korv = require "korv"
local pair = require "spec.pair"
local serving = require "spec.serving"
local support = require "spec.support"
local uv = require "luv"
local waiting = require "spec.waiting"

local UPGRADES = 20
local ITEMS = 20

-- Clients that connect, ask once and leave, over and over.
local function newcomer(server, load)
  return function()
    while load.running do
      local client, message = server:dial()
      if not client then error("refused: " .. message) end
      local response, why = client:store("/work", { name = "newcomer", seconds = 0 })
      if not response or response.code ~= 200 then error("lost: " .. (why or response.code)) end
      client:close()
      load.answered[response.body.pid] = true
    end
  end
end

-- A client with reconnect that has several calls under way all the time; STOREs, too, of which none may be lost or run twice.
local function regular(server, load, tag)
  local client = assert(server:dial { reconnect = true })
  local function caller(n)
    return function()
      for i = 1, math.huge do
        if not load.running then return end
        local name = ("%s.%d.%d"):format(tag, n, i)
        local response, why = client:store("/work", { name = name, seconds = 0.002 * n })
        if not response or response.code ~= 200 then error(("lost %s: %s"):format(name, why or response.code)) end
        load.stored[name] = true
      end
    end
  end
  return caller(0), caller(1), caller(5)
end

-- One stream after another, each on a connection of its own.
local function listener(server, load)
  return function()
    while load.running do
      local client = assert(server:dial())
      serving.read_items(client, ITEMS)
      client:close()
      load.streams = load.streams + 1
    end
  end
end

local function begin_load(server)
  local load = { running = true, answered = {}, stored = {}, streams = 0 }
  local tasks = { newcomer(server, load), newcomer(server, load), newcomer(server, load), listener(server, load), listener(server, load) }
  for i = 1, 3 do table.move({ regular(server, load, "r" .. i) }, 1, 3, #tasks + 1, tasks) end
  local finish = serving.begin(tasks)
  function load.finish()
    load.running = false
    finish(30)
  end
  return load
end

local function lines(name)
  local counts = {}
  for line in (support.read(support.path(name)) or ""):gmatch "[^\n]+" do counts[line] = (counts[line] or 0) + 1 end
  return counts
end

for _, workers in ipairs { 1, 2 } do
  local start = serving.starter(workers)

  describe(("an upgrade of a server of %d process(es)"):format(workers), function()
    setup(pair.begin)
    after_each(serving.finish)

    it("refuses no connection and loses no request, again and again under load", function()
      local server = start()
      local load = begin_load(server)
      local pid, port, olds = server.pid, server.port, {}
      serving.await(server, "an answer", function() return next(load.answered) end)
      for _ = 1, UPGRADES do
        olds[#olds + 1] = pid
        pid = server:upgrade(pid)
        assert.equal(port, server.port)
        local expected = workers > 1 and serving.children(pid) or { pid }
        serving.await(server, "an answer of the next server", function()
          for _, one in ipairs(expected) do
            if load.answered[one] then return true end
          end
        end)
      end
      for _, old in ipairs(olds) do server:gone(old) end
      load.finish()
      assert.is_true(load.streams > 0)
      local begun, stored = lines "begun", 0
      for name in pairs(load.stored) do
        stored = stored + 1
        assert.equal(1, begun[name], name)
      end
      assert.is_true(stored > 10 * UPGRADES)
    end)

    it("keeps no file descriptor and no process", function()
      local server = start()
      local pid = server:upgrade(server.pid)
      server:ask "/pid"
      local before = waiting.settled(function() return serving.all_descriptors(pid) end)
      for _ = 1, waiting.full and UPGRADES or 3 do
        local old, workers_then = pid, serving.children(pid)
        server:ask "/pid"
        pid = server:upgrade(pid)
        server:gone(old)
        for _, worker in ipairs(workers_then) do server:gone(worker) end
      end
      server:ask "/pid"
      serving.await(server, ("%d descriptors, as before"):format(before), function() return serving.all_descriptors(pid) <= before end)
      assert.equal(workers > 1 and workers or 0, #serving.children(pid))
    end)

    it("leaves the old server as it is where the next one cannot load its scripts", function()
      local server = start()
      local client = assert(server:dial())
      support.write("fail", "")
      serving.signal(server.pid, "sigusr2")
      server:logged "korv: [^\n]*serving%.lua: told to fail in %d+\n"
      server:logged "the upgrade failed: the next server ended before it was ready; this server goes on"
      assert.equal(200, client:get("/pid").code)
      server:ask "/pid"
      os.remove(support.path "fail")
      local pid = server:upgrade(server.pid)
      server:ask "/pid"
      serving.signal(pid, "sigterm")
      server:gone(pid)
    end)

    it("is one, however many are asked for at once", function()
      local server = start()
      for _ = 1, 100 do uv.kill(server.pid, "sigusr2") end
      local pid = server:upgrade(server.pid)
      for _ = 1, 3 do server:ask "/pid" end
      assert.equal(1, select(2, server.stderr:gsub("started the next server", "")))
      server:gone(server.pid)
      assert.is_true(support.is_running(pid))
    end)

    it("is told to nobody but the next server", function()
      local server = start()
      server:upgrade(server.pid)
      server:gone(server.pid)
      for _, way in ipairs { "popen", "execute", "exec" } do
        local text = server:ask("/inherited?way=" .. way)
        assert.is_nil(text:find "KORV_SOCKETS" or text:find "KORV_WORKER" or text:find "LISTEN", text)
        for fd, what in text:gmatch "(%d+) (%S+)" do assert.is_false(tonumber(fd) > 2 and what:find "^socket" ~= nil, text) end
      end
    end)

    it("of a server that is told to end while it lingers is over as soon as that has drained", function()
      local server = start { linger = 60 }
      local client = assert(server:dial())
      local outcome
      client:call("GET", "/work", { name = "begun", seconds = 0.3 }, { callback = function(response) outcome = response end })
      serving.await(server, "a request has begun", function() return lines("begun").begun end)
      local pid = server:upgrade(server.pid)
      serving.signal(server.pid, "sigterm")
      server:gone(server.pid)
      serving.await(server, "an answer", function() return outcome end)
      assert.equal(200, outcome.code)
      assert.is_true(support.is_running(pid))
      server:ask "/pid"
    end)

    it("is told to systemd, as are a start, reloads and the end", function()
      local path = support.path "notify"
      local peer = support.start({ support.python, support.root .. "/spec/peers/notify_socket.py", path }, { stdin = true })
      assert.equal("bound", peer:line())
      local function told(pid)
        while true do
          local message = cjson.decode(peer:line() or error "nothing was told")
          local text = table.concat(message.lines, " ")
          if message.pid == pid and text ~= "WATCHDOG=1" then return text end
        end
      end
      local server = start { env = { NOTIFY_SOCKET = path } }
      assert.equal("READY=1", told(server.pid))
      serving.signal(server.pid, "sighup")
      assert.matches("^RELOADING=1 MONOTONIC_USEC=%d+$", told(server.pid))
      assert.equal("READY=1", told(server.pid))
      local pid = server:upgrade(server.pid)
      assert.equal(("MAINPID=%d WATCHDOG=1"):format(pid), told(server.pid))
      server:gone(server.pid)
      serving.signal(pid, "sighup")
      local text = told(pid)
      if text == "READY=1" then text = told(pid) end -- what the two say of the hand-over comes in any order
      assert.matches("^RELOADING=1", text)
      assert.equal("READY=1", told(pid))
      serving.signal(pid, "sigterm")
      assert.equal("STOPPING=1", told(pid))
      server:gone(pid)
    end)

    it("is possible where systemd holds the socket, and a connection before the start is served", function()
      if not os.execute "command -v systemd-socket-activate >/dev/null" then return pending "systemd-socket-activate is not there" end
      local free = uv.new_tcp()
      assert(free:bind("127.0.0.1", 0))
      local port = free:getsockname().port
      free:close()
      uv.run "nowait"
      local server = serving.launch { workers = workers, port = 1, before = { "systemd-socket-activate", "-l",
        "127.0.0.1:" .. port, "-E", "KORV_SPEC_FOLDER", "-E", "KORV_SPEC_LINGER" } }
      server:logged "Listening on"
      server.port = port
      local client = assert(server:dial())
      server:ready()
      assert.equal(port, server.port)
      assert.equal(200, client:get("/pid").code)
      local text = server:ask "/inherited?way=exec"
      assert.is_nil(text:find "LISTEN", text)
      local pid = server:upgrade(server.pid)
      assert.equal(port, server.port)
      server:gone(server.pid)
      server:ask "/pid"
      serving.signal(pid, "sigterm")
      server:gone(pid)
    end)
  end)
end

describe("a flood of signals", function()
  setup(pair.begin)
  after_each(serving.finish)

  for _, workers in ipairs { 1, 2 } do
    it(("of SIGHUP makes few reloads, with %d process(es)"):format(workers), function()
      local server = serving.start { workers = workers }
      local client, sent = assert(server:dial()), 2000
      for _ = 1, sent do uv.kill(server.pid, "sighup") end
      local generation
      serving.await(server, "rest", function()
        local now = client:get("/who").body.generation
        local same = now == generation
        generation = now
        if not same then pair.in_task(function() korv.sleep(0.2) end) end
        return same and now > 1
      end)
      assert.is_true(generation < sent / 4, generation)
      serving.signal(server.pid, "sighup")
      serving.await(server, "one more", function() return client:get("/who").body.generation > generation end)
    end)
  end
end)

describe("a worker that stands still", function()
  setup(pair.begin)
  after_each(serving.finish)

  it("is handed no more than it has read, and the others get the rest", function()
    local server = serving.start { workers = 2, watchdog = 60 }
    local count = 200
    local pids = server:workers()
    local function hand_over()
      local sockets = {}
      for i = 1, count do
        sockets[i] = uv.new_tcp()
        sockets[i]:connect("127.0.0.1", server.port, function() end)
      end
      serving.await(server, "the other worker has most", function() return support.descriptors(pids[2]) > count / 4 end)
      for _, socket in ipairs(sockets) do socket:close() end
      serving.await(server, "they are gone", function() return support.descriptors(pids[2]) < 40 end)
    end
    hand_over()
    serving.signal(pids[1], "sigstop")
    for _ = 1, 20 do hand_over() end -- as many as the supervisor's heap grows for, until its collector keeps pace with closed handles
    local function held() return support.descriptors(server.pid) end
    local descriptors, bytes = waiting.settled(held), server:rss_bytes()
    for _ = 1, 6 do hand_over() end
    serving.await(server, "what it has still to accept has gone as well", function() return held() <= descriptors + 4 end)
    if waiting.is_measured then assert.is_true(server:rss_bytes() - bytes < waiting.MEBIBYTE / 2, server:rss_bytes() - bytes) end
    assert.equal(pids[2], server:ask "/pid")
    serving.signal(pids[1], "sigcont")
    local is_back
    serving.await(server, "the worker is back", function()
      is_back = is_back or server:ask "/pid" == pids[1]
      return is_back
    end)
  end)
end)
