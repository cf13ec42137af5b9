--- `korv serve --workers N` as it is run: connections, deaths, reloads, the start and the end of its processes. What the supervisor does by
-- itself is in spec/supervisor_spec.lua.

local korv = require "korv"
local pair = require "spec.pair"
local serving = require "spec.serving"
local support = require "spec.support"
local uv = require "luv"
local waiting = require "spec.waiting"

local WORKERS = 4

local function pid_of(client) return math.tointeger(assert(client:get "/pid").body) end

-- Clients that log in at the same time.
local function dial_all(server, count, options)
  local clients, tasks = {}, {}
  for i = 1, count do
    tasks[i] = function() clients[i] = assert(server:dial(options)) end
  end
  serving.together(tasks, 60)
  return clients
end

-- One client of each worker, by the worker's process.
local function crew(server, count)
  local by_pid, found = {}, 0
  while found < count do
    local client = assert(server:dial())
    local pid = pid_of(client)
    if by_pid[pid] then
      client:close()
    else
      by_pid[pid], found = client, found + 1
    end
  end
  return by_pid
end

local function generations(clients)
  local seen = {}
  for _, client in pairs(clients) do seen[assert(client:get "/who").body.generation] = true end
  return seen
end

local function all_gone(pids)
  return function()
    for _, pid in ipairs(pids) do
      if support.is_running(pid) then return false end
    end
    return true
  end
end

local function occurrences(text, pattern) return select(2, text:gsub(pattern, "")) end

describe("korv serve --workers", function()
  setup(pair.begin)
  after_each(serving.finish)

  it("spreads 200 connections over 4 workers: none has more than one over its share", function()
    local server = serving.start { workers = WORKERS }
    local counts = {}
    for _, client in ipairs(dial_all(server, 200)) do
      local pid = pid_of(client)
      counts[pid] = (counts[pid] or 0) + 1
    end
    local workers = server:workers()
    assert.equal(WORKERS, #workers)
    for _, pid in ipairs(workers) do
      assert.is_true(counts[pid] >= 49 and counts[pid] <= 51, ("a worker has %s connections"):format(counts[pid]))
    end
  end)

  it("loses by a kill -9 the killed worker's connections alone, and a client with reconnect finishes all of its GETs", function()
    local server = serving.start { workers = WORKERS }
    local deaths, running, killed = 5, true, {}
    local answered, tasks = 0, {}
    for i = 1, 8 do
      tasks[i] = function()
        local client = assert(server:dial { reconnect = true })
        while running do
          for n = 1, 5 do
            client:call("GET", "/work", { name = ("r%d-%d"):format(i, n), seconds = 0.002 * n }, { callback = function(response, message)
              assert(response and response.code == 200, message)
              answered = answered + 1
            end })
          end
          assert(client:get("/pid"))
          answered = answered + 1
        end
      end
    end
    local broken = 0
    for i = 9, 16 do
      tasks[i] = function()
        local client = assert(server:dial())
        local pid = pid_of(client)
        while running do
          local response, message = client:get "/pid"
          if response then
            assert(response.body == pid, "a connection has changed its worker")
          else
            assert(killed[pid], message)
            broken = broken + 1
            return
          end
        end
      end
    end
    tasks[#tasks + 1] = function()
      for _ = 1, deaths do
        korv.sleep(0.3)
        local before, workers = answered, server:workers()
        local pid = workers[math.random(#workers)]
        killed[pid] = true
        uv.kill(pid, "sigkill")
        while answered < before + 20 do korv.sleep(0.01) end
      end
      running = false
    end
    serving.together(tasks, 60)
    assert.is_true(broken > 0)
    assert.equal(deaths, occurrences(server.stderr, "was ended by signal 9; another one is started in"))
    serving.await(server, "as many workers as before", function() return #server:workers() == WORKERS end)
  end)

  it("reloads all workers, or none where one cannot", function()
    local server = serving.start { workers = 3 }
    local clients = crew(server, 3)
    assert.same({ [1] = true }, generations(clients))
    serving.signal(server.pid, "sighup")
    server:logged '"reloaded: generation 2"'
    assert.same({ [2] = true }, generations(clients))

    local unlucky = next(clients)
    support.write("fail-" .. unlucky, "")
    serving.signal(server.pid, "sighup")
    server:logged('"not reloaded, generation 2 goes on: [^"]*serving%.lua: told to fail in ' .. unlucky)
    assert.equal(1, occurrences(server.stderr, "told to fail"))
    assert.same({ [2] = true }, generations(clients))

    os.remove(support.path("fail-" .. unlucky))
    serving.signal(server.pid, "sighup")
    server:logged '"reloaded: generation 3"'
    assert.same({ [3] = true }, generations(clients))
    for pid, client in pairs(clients) do assert.equal(pid, pid_of(client)) end
  end)

  it("reloads all workers by app:reload() in an endpoint of one, which is told what came of it", function()
    local server = serving.start { workers = 3 }
    local clients = crew(server, 3)
    local pid, client = next(clients)
    assert.equal(200, client:get("/reload").code)
    assert.same({ [2] = true }, generations(clients))
    local other = next(clients, pid)
    support.write("fail-" .. other, "")
    local refused = client:get "/reload"
    assert.equal(500, refused.code)
    assert.matches("told to fail in " .. other, refused.body)
    assert.same({ [2] = true }, generations(clients))
  end)

  it("replaces a worker whose loop stands still for the time of the watchdog", function()
    local server = serving.start { workers = 2, watchdog = 3 }
    local clients = crew(server, 2)
    local stuck, client = next(clients)
    local other, other_client = next(clients, stuck)
    local outcome
    client:get("/block", nil, function(response) outcome = { response } end)
    server:logged(("worker %%d %%(pid %d%%) gave no sign of life for 3 s; it is killed"):format(stuck), 10)
    local program = tonumber(support.read(support.path "blocked"))
    uv.kill(program, "sigkill")
    serving.await(server, "the call has failed", function() return outcome end)
    assert.is_nil(outcome[1])
    server:gone(stuck)
    assert.equal(other, pid_of(other_client))
    serving.await(server, "another worker in its place", function() return #server:workers() == 2 end)
    assert.is_truthy(crew(server, 2)[other])
  end)

  it("writes access lines that carry the worker and the generation", function()
    local server = serving.start { workers = 2, arguments = { "--log-format", "json" } }
    local clients = crew(server, 2)
    serving.signal(server.pid, "sighup")
    server:logged '"reloaded: generation 2"'
    for _, client in pairs(clients) do client:get "/who" end
    local seen = {}
    serving.await(server, "a line of each worker", function()
      for line in server.stderr:gmatch "[^\n]*\n" do
        local fields = korv.json.decode(line)
        if fields.verb then seen[fields.resource .. " w" .. fields.worker .. " g" .. fields.generation] = true end
      end
      return seen["/who w1 g2"] and seen["/who w2 g2"]
    end)
    assert.is_true(seen["/pid w1 g1"] and seen["/pid w2 g1"])
    assert.is_nil(seen["/who w1 g1"] or seen["/who w2 g1"])
  end)

  it("has one host key, though all workers find none at once", function()
    for i = 1, waiting.full and 20 or 3 do
      local path = support.path("made" .. i)
      local server = serving.start { workers = WORKERS, host_key = path }
      local prints = {}
      for _ = 1, 2 * WORKERS do prints[assert(server:dial { known_hosts = false }).fingerprint or "none"] = true end
      assert.same({ [server.fingerprint] = true }, prints)
      assert.equal(server.fingerprint, support.fingerprint(path))
      assert.equal(1, occurrences(server.stderr, "made a new host key"))
      server:stop()
    end
  end)

  it("ends with status 1 and one message where the scripts cannot be loaded", function()
    local script = support.write("broken.lua", 'error("as it was to be")')
    local server = serving.launch { workers = WORKERS, script = script }
    server:wait()
    assert.same({ 1, "" }, { server.code, server.stdout })
    assert.equal(("korv: %s:1: as it was to be\n"):format(script), server.stderr)
  end)

  it("starts a worker again and again until what it loads is mended, and says what is wrong", function()
    local server = serving.start { workers = 2 }
    support.write("fail", "")
    local pid = server:workers()[1]
    serving.signal(pid, "sigkill")
    server:logged 'ended with status 1: [^"]*serving%.lua: told to fail in %d+; another one is started in'
    os.remove(support.path "fail")
    serving.await(server, "two workers", function() return #server:workers() == 2 end)
    crew(server, 2)
  end)

  it("has its workers end what they do where the supervisor is killed", function()
    local server = serving.start { workers = 3 }
    local pids, outcomes = server:workers(), {}
    for i, client in ipairs(dial_all(server, 6)) do
      client:call("GET", "/work", { name = "w" .. i, seconds = 1 }, { callback = function(response)
        outcomes[#outcomes + 1] = response
      end })
    end
    serving.await(server, "all have begun", function() return occurrences(support.read(support.path "begun") or "", "\n") == 6 end)
    uv.kill(server.pid, "sigkill")
    serving.await(server, "the workers have ended", all_gone(pids), 5)
    serving.await(server, "six answers", function() return #outcomes == 6 end)
    for _, response in ipairs(outcomes) do assert.equal(200, response.code) end
    assert.is_true(support.wait_for(function() return server:ended() end))
  end)

  it("leaves programs that endpoints run no descriptor of the server's, and no word of its workers", function()
    local server = serving.start { workers = 2 }
    for _, way in ipairs { "popen", "execute", "exec" } do
      local text = server:ask("/inherited?way=" .. way)
      assert.is_nil(text:find "KORV_WORKER" or text:find "KORV_GENERATION", text)
      for fd, what in text:gmatch "(%d+) (%S+)" do
        assert.is_false(tonumber(fd) > 2 and what:find "^socket" ~= nil or what:find "anon_inode" ~= nil, text)
      end
    end
  end)

  it("leaves those that a script runs while it loads none either", function()
    local script = support.write("runs.lua", [[
      local pipe <close> = io.popen "ls -l /proc/self/fd; env"
      local text = pipe:read "a"
      return function(app) app:get("/text", function() return 200, text end) end]])
    local text = serving.start({ workers = 2, script = script }):ask "/text"
    assert.is_nil(text:find " [3-9] %-> socket", text)
    assert.is_nil(text:find "KORV_WORKER" or text:find "KORV_GENERATION", text)
  end)

  it("keeps no descriptor and no zombie of 1,000 connections, of workers that died, and of reloads", function()
    local server = serving.start { workers = 2 }
    local function churn(count)
      for _, client in ipairs(dial_all(server, count)) do
        pid_of(client)
        client:close()
      end
    end
    churn(20)
    local before = waiting.settled(function() return serving.all_descriptors(server.pid) end)
    for _ = 1, waiting.scaled(1000) // 25 do churn(25) end
    for i = 1, 2 do
      serving.signal(server:workers()[1], "sigkill")
      server:logged(("signal 9"):rep(i, ".*"))
      serving.await(server, "two workers", function() return #server:workers() == 2 end)
      serving.signal(server.pid, "sighup")
      server:logged(("reloaded: generation %d"):format(i + 1))
    end
    for _, client in pairs(crew(server, 2)) do client:close() end
    serving.await(server, ("%d descriptors, as before"):format(before), function()
      return serving.all_descriptors(server.pid) <= before
    end)
  end)
end)
