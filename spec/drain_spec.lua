--- How `korv serve` ends: what was begun is answered, what is new is refused, everybody is told; with one process and with several.

local cjson = require "cjson"
local pair = require "spec.pair"
local raw_channel = require "spec.peers.raw_channel"
local serving = require "spec.serving"
local support = require "spec.support"
local uv = require "luv"

local DEADLINE = 20

-- The names of the requests that the server began.
local function begun()
  local names = {}
  for name in (support.read(support.path "begun") or ""):gmatch "[^\n]+" do names[name] = (names[name] or 0) + 1 end
  return names
end

local function begun_count()
  local count = 0
  for _ in pairs(begun()) do count = count + 1 end
  return count
end

local function await_begun(server, count)
  serving.await(server, count .. " requests have begun", function() return begun_count() >= count end)
end

-- A call of /work; what came of it is its entry in outcomes.
local function work(client, outcomes, name, seconds)
  client:call("STORE", "/work", { name = name, seconds = seconds }, { callback = function(response, message, code)
    outcomes[name] = { code = response and response.code, message = message, name = code }
  end })
end

local function settled(outcomes, count)
  return function()
    local found = 0
    for _ in pairs(outcomes) do found = found + 1 end
    return found >= count
  end
end

local function ssh(server, ...) return support.start(support.ssh(server, {}, ...), { stdin = true }) end

-- The load ---------------------------------------------------------------------------------------------------------------------------

local PIPELINED = 600

-- One channel and many requests for it: begin() sends them, finish() returns the code that each got, by its name.
local function pipelined(server, pairing, tag)
  local peer = assert(raw_channel.connect(server))
  local channel = peer:open_as(pairing)
  local bytes, names = {}, {}
  for i = 1, PIPELINED do
    names[i] = ("%s-%d"):format(tag, i)
    local body = cjson.encode { name = names[i], seconds = i == PIPELINED and 1 or 0.002 * (i % 150) }
    bytes[i] = channel:message(raw_channel.text(i, "STORE", "/work", body))
  end
  local function begin() channel:stream(table.concat(bytes)) end
  local function finish()
    local codes = {}
    for _, message in ipairs(channel:closed(DEADLINE)) do
      local i = math.tointeger(cjson.decode(message.request_id))
      assert.is_nil(codes[names[i]], "a request was answered twice")
      codes[names[i]] = message.code
    end
    return codes
  end
  local function ask_late() -- of a channel that is busy, unless much of what was on it has been refused
    names[PIPELINED + 1] = tag .. "-late"
    pcall(channel.request, channel, raw_channel.text(PIPELINED + 1, "STORE", "/work", cjson.encode { name = tag .. "-late", seconds = 0 }))
  end
  return { begin = begin, finish = finish, ask_late = ask_late }
end

-- A client that calls without a pause until its connection ends.
local function restless(server, tag, codes, refused)
  local client = assert(server:dial())
  return function()
    for i = 1, math.huge do
      local name = ("%s-%d"):format(tag, i)
      local response, _, code = client:store("/work", { name = name, seconds = 0.005 })
      if not response then
        refused[name] = code
        return
      end
      codes[name] = response.code
    end
  end
end

-- A stream that takes longer than it is until the server is told to end.
local function streaming(server, flowing)
  local client = assert(server:dial())
  return function()
    serving.read_items(client, 40, function() flowing[client] = true end)
  end
end

for _, workers in ipairs { 1, 2 } do
  local start = serving.starter(workers)

  local function terminate(server)
    serving.signal(server.pid, "sigterm")
    server:logged "SIGTERM: finishing what is under way"
  end

  describe(("a server of %d process(es) that is told to end"):format(workers), function()
    setup(pair.begin)
    after_each(serving.finish)

    it("answers every request that it has begun, whatever way it came", function()
      local server = start()
      local codes, refused, channels, tasks, flowing = {}, {}, {}, {}, {}
      for i = 1, 2 do
        tasks[#tasks + 1] = streaming(server, flowing)
        for n, pairing in ipairs(raw_channel.every_pairing) do
          channels[#channels + 1] = pipelined(server, pairing, ("p%d.%d"):format(i, n))
        end
      end
      for i = 1, 6 do tasks[#tasks + 1] = restless(server, "r" .. i, codes, refused) end
      local finish = serving.begin(tasks)
      serving.await(server, "both streams flow", settled(flowing, 2))
      for _, channel in ipairs(channels) do channel.begin() end
      await_begun(server, 300)
      terminate(server)
      for _, channel in ipairs(channels) do channel.ask_late() end
      finish(DEADLINE)
      for _, channel in ipairs(channels) do
        for name, code in pairs(channel.finish()) do codes[name] = code end
      end
      server:wait()
      assert.same({ 0, 0 }, { server.code, server.signal })

      local began, answered, turned_away = begun(), 0, 0
      for name, times in pairs(began) do
        assert.equal(1, times)
        assert.equal(200, codes[name], name .. " was begun")
      end
      for name, code in pairs(codes) do
        if code == 503 then assert.is_nil(began[name]) turned_away = turned_away + 1
        else assert.is_truthy(began[name]) answered = answered + 1 end
      end
      for name, why in pairs(refused) do
        assert.is_nil(began[name], name .. " was begun and got no answer")
        assert.equal("EOF", why)
      end
      assert.is_true(answered >= 300)
      assert.is_true(turned_away > 0, "no 503")
    end)

    it("refuses what is new on a busy channel with 503, and new connections; idle channels are closed at once", function()
      local server = start()
      local busy, idle, outcomes = assert(server:dial()), assert(server:dial()), {}
      work(busy, outcomes, "begun", 1)
      await_begun(server, 1)
      terminate(server)
      serving.await(server, "the idle channel is closed", function() return idle.lost end)
      assert.same({ "EOF", nil }, { idle.lost.name, outcomes.begun })
      work(busy, outcomes, "new", 0)
      local nobody, _, name = server:dial()
      assert.same({ nil, "ECONNREFUSED" }, { nobody, name })
      serving.await(server, "both are answered", settled(outcomes, 2))
      assert.same({ 200, 503 }, { outcomes.begun.code, outcomes.new.code })
      assert.is_nil(begun().new)
      server:wait()
      assert.equal(0, server.code)
    end)

    it("tells those who are left why they are disconnected", function()
      local server = start()
      local without_channel = ssh(server, "-v", "-N", "127.0.0.1")
      serving.await(server, "ssh is logged in", function() return without_channel.stderr:find "Entering interactive session" end)
      local idle, busy = ssh(server, "-s", "127.0.0.1", "korv"), ssh(server, "-s", "127.0.0.1", "korv")
      idle:write '{"id":1,"verb":"GET","resource":"/pid"}\n'
      busy:write '{"id":2,"verb":"GET","resource":"/work","body":{"name":"begun","seconds":0.5}}\n'
      assert.matches('"code":200', idle:line())
      await_begun(server, 1)
      terminate(server)
      assert.matches('"request_id":2,"code":200', busy:line())
      for _, process in ipairs { without_channel, idle, busy } do
        process:close_stdin()
        process:wait()
      end
      assert.matches("Received disconnect from 127.0.0.1 port %d+:11: the server is stopping", without_channel.stderr)
      assert.same({ 255, 0, 0 }, { without_channel.code, idle.code, busy.code })
      server:wait()
    end)

    it("answers 503 to what takes longer than --drain, and tells the rest of a stream off", function()
      local server = start { arguments = { "--drain", "1" } }
      local client, outcomes, flows, stream_end = assert(server:dial()), {}, false, nil
      work(client, outcomes, "long", 60)
      client:stream("GET", "/items?n=1000&s=0.1", nil, function(item, message, name)
        flows = true
        if not item then stream_end = stream_end or { message, name } end
      end)
      await_begun(server, 1)
      serving.await(server, "an item", function() return flows end)
      terminate(server)
      local began = uv.hrtime()
      server:wait()
      assert.is_true((uv.hrtime() - began) / 1e9 < 3 * support.patience)
      serving.await(server, "answers", function() return outcomes.long and stream_end end)
      assert.equal(503, outcomes.long.code, outcomes.long.message)
      assert.matches("503", stream_end[1])
      assert.equal("ESTATUS", stream_end[2])
      assert.equal(0, server.code)
    end)

    it("ends at once at a second signal", function()
      local server = start()
      local client, outcomes = assert(server:dial()), {}
      work(client, outcomes, "long", 60)
      await_begun(server, 1)
      local pids = serving.children(server.pid)
      assert.equal(workers > 1 and workers or 0, #pids)
      terminate(server)
      local began = uv.hrtime()
      serving.signal(server.pid, "sigint")
      server:wait()
      assert.is_true((uv.hrtime() - began) / 1e9 < 2 * support.patience)
      assert.equal(0, server.code)
      serving.await(server, "the call has failed", function() return outcomes.long end)
      assert.is_nil(outcomes.long.code)
      for _, pid in ipairs(pids) do server:gone(pid) end
    end)

    it("takes SIGTERM at all of its processes, as systemd sends it, for one", function()
      local server = start()
      local client, outcomes = assert(server:dial()), {}
      work(client, outcomes, "begun", 0.5)
      await_begun(server, 1)
      for _, pid in ipairs(serving.children(server.pid)) do serving.signal(pid, "sigterm") end
      terminate(server)
      server:wait()
      serving.await(server, "an answer", function() return outcomes.begun end)
      assert.same({ 200, 0 }, { outcomes.begun.code, server.code })
    end)
  end)
end
