--- The supervisor and its workers, as processes with sockets between them: which worker gets a connection, and how workers are started,
-- replaced and ended. Their reloads are in supervisor_reload_spec.lua.

local child = require "korv.child"
local supervisor = require "korv.supervisor"
local supervised = require "spec.supervised"
local support = require "spec.support"
local uv = require "luv"

local begin, connect, connections, crew = supervised.begin, supervised.connect, supervised.connections, supervised.crew
local events, occurrences, order, start = supervised.events, supervised.occurrences, supervised.order, supervised.start
local tally, wait_for_event, wait_for_log = supervised.tally, supervised.wait_for_event, supervised.wait_for_log
local wait_until_ready, write_script = supervised.wait_until_ready, supervised.write_script

describe("the supervisor", function()
  after_each(supervised.finish)

  describe("hands connections over", function()
    it("200 to 4 workers: none has more than one over its share", function()
      assert.same({ 50, 50, 50, 50 }, tally(connections(start { workers = 4 }, 200)))
    end)

    it("to the worker that has the fewest, closed ones not counted", function()
      local parent = start { workers = 3 }
      local list = connections(parent, 60)
      tally(list)
      for _, client in ipairs(list) do
        client.number = client:who().number
        if client.number == 2 then client:close() end
      end
      assert.is_true(support.wait_for(function() return order(parent, "held") == "held 20 0 20" end))
      assert.same({ [2] = 20 }, tally(connections(parent, 20)))
      assert.equal("held 20 20 20", order(parent, "held"))
    end)

    it("tells of many that close at once in few messages", function()
      local parent = start { workers = 1 }
      local list = connections(parent, 100)
      tally(list)
      for _, client in ipairs(list) do client:close() end
      assert.is_true(support.wait_for(function() return order(parent, "held") == "held 0" end))
      assert.is_true(tonumber(order(parent, "told"):match "%d+") <= 10)
      assert.is_true(support.wait_for(function() return order(parent, "counters") == "counters 0 100 1" end))
    end)

    it("once a worker is ready: until then they wait", function()
      local parent = begin({ workers = 2 }, { name = "slowly", start_slow = 0.5 })
      local list = connections(parent, 10)
      for _, client in ipairs(list) do client:send "who" end
      assert.equal("", parent.stdout)
      local shares = tally(list)
      assert.equal(10, (shares[1] or 0) + (shares[2] or 0))
      assert.equal("started slowly", parent:line())
    end)

    it("to the next worker, where the only one has died", function()
      local parent = start { workers = 1 }
      local before = connect(parent):who()
      uv.kill(before.pid, "sigkill")
      wait_for_log(parent, "worker 1 %(pid %d+%) was ended by signal 9; another one is started in 0.1 s")
      local list = connections(parent, 10)
      tally(list)
      assert.is_true(list[1]:who().pid ~= before.pid)
    end)

    it("to another worker, where the one that was chosen has just died", function()
      local parent = start { workers = 4 }
      local pid = crew(parent, 4)[1]:who().pid
      uv.kill(parent.pid, "sigstop")
      local list = connections(parent, 8)
      for _, client in ipairs(list) do client:send "who" end -- each is connected then, by the kernel
      uv.kill(pid, "sigkill")
      assert.is_true(support.wait_for(function() return not support.is_running(pid) end))
      uv.kill(parent.pid, "sigcont")
      tally(list)
    end)

    it("not to one that does not read; what it could not be given is not accepted", function()
      local parent = start { workers = 1, watchdog = 60 }
      local blocked = connect(parent)
      local before = support.descriptors(parent.pid)
      blocked:send "block"
      local list = connections(parent, 600)
      for _, client in ipairs(list) do client:send "who" end
      local held = 0
      local function is_steady()
        local now = order(parent, "held")
        local steady = now == held
        held = now
        return steady
      end
      assert.is_true(support.wait_for(is_steady))
      assert.is_true(tonumber(held:match "%d+") < 500, held)
      assert.is_true(support.descriptors(parent.pid) < before + 10)
      assert.equal("stopped", order(parent, "stop"))
    end)

    it("so that nothing of the supervisor's pipe reaches a program that a worker runs", function()
      local client = connect(start { workers = 2, env = { KORV_ELSE = "x" } })
      local list = client:ask "inherited"
      assert.matches("0 %->", list)
      assert.is_nil(list:find "socket:.*socket:.*socket:.*socket:") -- its standard streams may be such
      assert.is_nil(list:find "[3-9] %-> socket")
      assert.matches("KORV_WORKER=;", list)
    end)
  end)

  describe("replaces a worker", function()
    it("that was killed: only its connections break, its number is taken over, the pause doubles", function()
      local parent = start { workers = 3 }
      local list = crew(parent, 3)
      local pid = list[2]:who().pid
      for _, pause in ipairs { "0.1", "0.2", "0.4" } do
        uv.kill(pid, "sigkill")
        wait_for_log(parent, ("worker 2 %%(pid %d%%) was ended by signal 9; another one is started in %s s"):format(pid, pause))
        assert.is_nil(list[2]:line())
        assert.is_truthy(list[2].closed)
        assert.equal("held 1 0 1", order(parent, "held"))
        wait_until_ready(parent, 3)
        list[2] = connect(parent) -- the new one has the fewest
        local who = list[2]:who()
        assert.equal(2, who.number)
        assert.is_true(who.pid ~= pid)
        pid = who.pid
      end
      assert.equal(1, list[1]:who().number)
      assert.equal(3, list[3]:who().number)
    end)

    it("that ended by itself, with its status in the log", function()
      local parent = start { workers = 2 }
      local list = crew(parent, 2)
      list[1]:send "exit 7"
      wait_for_log(parent, "worker 1 %(pid %d+%) ended with status 7; another one is started in 0.1 s")
      assert.equal(2, list[2]:who().number)
    end)

    it("after a pause that doubles up to 10 s, and is short again after a life of 10 s", function()
      local place = child.new(1, { argv = { "false" }, watchdog = 10, load_limit = 10 }, {})
      local function pause()
        local seconds = place:replace(function() end)
        place:kill()
        return seconds
      end
      place.pid, place.born = 1, uv.now()
      local pauses = {}
      for i = 1, 9 do pauses[i] = pause() end
      assert.same({ 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10 }, pauses)
      place.born = uv.now() - 10000
      assert.equal(0.1, pause())
    end)

    it("whose loop stands still; the others go on meanwhile", function()
      local parent = start { workers = 2, watchdog = 2 }
      local list = crew(parent, 2)
      local blocked = list[1]:who()
      list[1]:send "block"
      local answered = 0
      local before = uv.hrtime()
      while support.is_running(blocked.pid) and uv.hrtime() - before < 15e9 do
        assert.equal("done", list[2]:ask "work 0.05")
        answered = answered + 1
      end
      assert.is_true(answered > 10)
      wait_for_log(parent, ("worker 1 %%(pid %d%%) gave no sign of life for 2 s; it is killed"):format(blocked.pid))
      wait_for_log(parent, "worker 1 %(pid %d+%) was ended by signal 9")
      assert.is_nil(list[1]:line())
      assert.is_true(support.wait_for(function() return occurrences(events(parent), "1 start") == 2 end))
    end)

    it("not because it stood still itself", function()
      local parent = start { workers = 2, watchdog = 2 }
      local list = crew(parent, 2)
      local first, second = list[1]:who(), list[2]:who()
      for _, pid in ipairs { parent.pid, first.pid, second.pid } do uv.kill(pid, "sigstop") end
      uv.sleep(3000)
      for _, pid in ipairs { parent.pid, first.pid, second.pid } do uv.kill(pid, "sigcont") end
      for _ = 1, 5 do
        assert.equal("done", list[1]:ask "work 0.2")
        assert.equal("done", list[2]:ask "work 0.2")
      end
      assert.equal("", parent.stderr)
    end)
  end)

  describe("starts", function()
    it("none where one ends before it is ready", function()
      local parent = begin({ workers = 3 }, { name = "first", die = 2 })
      assert.matches("^failed worker 2 %(pid %d+%) ended with status 3 before it was ready$", parent:line())
      parent:wait()
      assert.equal(0, parent.code)
    end)

    it("none where the program cannot be run", function()
      local parent = begin { workers = 2, argv = { "/nowhere/korv" } }
      assert.equal("failed worker 1: cannot run /nowhere/korv: ENOENT: no such file or directory", parent:line())
      parent:wait()
      assert.equal(0, parent.code)
    end)

    it("none where one does not get ready in time", function()
      local parent = begin({ workers = 2, watchdog = 2, load_limit = 0 }, { name = "first", hang = 1, start_slow = 60 })
      wait_for_log(parent, "worker 1 %(pid %d+%) gave no sign of life for 5 s; it is killed")
      assert.matches("^failed worker %d %(pid %d+%) was ended by signal 9 before it was ready$", parent:line())
    end)

    it("with options that make sense", function()
      local good = { argv = { "true" }, sockets = { 0 }, workers = 2 }
      for name, bad in pairs { argv = {}, sockets = {}, workers = 0, watchdog = 1 } do
        local options = setmetatable({ [name] = bad }, { __index = good })
        local ok, message = pcall(function() return (supervisor.new(options)) end)
        assert.is_false(ok)
        assert.matches("supervisor_spec.lua:%d+: korv.supervisor: " .. name .. " must be", message)
      end
    end)
  end)

  describe("ends", function()
    local function refused(parent)
      local client = connect(parent)
      support.wait_for(function() return client.closed or client.connected end)
      return client.problem == "ECONNREFUSED"
    end

    it("after what is under way", function()
      local parent = start { workers = 2 }
      local list = crew(parent, 2)
      list[1]:send "work 0.5"
      list[2]:who()
      parent:write "drain 5\n"
      assert.is_nil(list[2]:line())
      assert.is_true(refused(parent))
      assert.equal("", parent.stdout)
      assert.equal("done", list[1]:line())
      assert.equal("drained", parent:line())
      parent:wait()
      assert.same({ 0, 0, "" }, { parent.code, parent.signal, parent.stderr })
    end)

    it("at the latest 3 s after the time to drain", function()
      local parent = start { workers = 2, watchdog = 60 }
      local list = crew(parent, 2)
      local pid = list[1]:who().pid
      list[1]:send "block"
      parent:write "drain 0.5\n"
      local before = uv.hrtime()
      assert.equal("drained", parent:line())
      local seconds = (uv.hrtime() - before) / 1e9
      assert.is_true(seconds > 3 and seconds < 8, seconds)
      assert.is_false(support.is_running(pid))
    end)

    it("while workers are being started, and reloads are under way", function()
      local parent = start { workers = 2 }
      local list = crew(parent, 2)
      write_script(parent, { name = "second", slow = 60, start_slow = 60 })
      uv.kill(list[1]:who().pid, "sigkill")
      wait_for_log(parent, "another one is started")
      parent:write "reload\n"
      wait_for_event(parent, "prepare")
      parent:write "reload\ndrain 5\n"
      assert.equal("not reloaded: worker 2 ended while it loaded", parent:line())
      assert.equal("not reloaded: the server is stopping", parent:line())
      assert.equal("drained", parent:line())
      parent:wait()
      assert.same({ 0, 0 }, { parent.code, parent.signal })
    end)

    it("at once, when told to", function()
      local parent = start { workers = 2 }
      local list = crew(parent, 2)
      local pids = { list[1]:who().pid, list[2]:who().pid }
      list[1]:send "block"
      assert.equal("stopped", order(parent, "stop"))
      parent:wait()
      assert.same({ 0, 0 }, { parent.code, parent.signal })
      for _, pid in ipairs(pids) do assert.is_false(support.is_running(pid)) end
    end)

    it("its workers when it is killed; they finish what they have", function()
      local parent = start { workers = 4 }
      local list = crew(parent, 4)
      local pids = {}
      for i, client in ipairs(list) do pids[i] = client:who().pid end
      list[3]:send "work 0.5"
      uv.kill(parent.pid, "sigkill")
      assert.equal("done", list[3]:line())
      for _, pid in ipairs(pids) do
        assert.is_true(support.wait_for(function() return not support.is_running(pid) end))
      end
    end)
  end)

  describe("has workers that", function()
    it("say so where they have no supervisor", function()
      local parent = start { workers = 1 }
      local process = support.run({ "sh", "-c", "exec lua5.4 \"$@\" 3>&-", "sh", support.root .. "/spec/peers/plain_worker.lua",
        parent.folder }, { env = { KORV_WORKER = 1, KORV_GENERATION = 1 } })
      assert.equal(1, process.code)
      assert.matches("KORV_WORKER is set, but file descriptor 3 is no supervisor's pipe", process.stderr)
    end)

    it("leave the terminal's signals to it", function()
      local parent = start { workers = 1 }
      local client = connect(parent)
      local pid = client:who().pid
      for _, signal in ipairs { "sigint", "sighup", "sigusr2" } do
        uv.kill(pid, signal)
        assert.equal(pid, client:who().pid)
      end
    end)

    it("drain at a SIGTERM, and are replaced; meanwhile connections go to the others", function()
      local parent = start { workers = 2 }
      local list = crew(parent, 2)
      local pid = list[1]:who().pid
      list[1]:send "work 1"
      uv.kill(pid, "sigterm")
      wait_until_ready(parent, 1)
      assert.same({ [2] = 4 }, tally(connections(parent, 4)))
      assert.is_true(support.is_running(pid))
      wait_for_event(parent, "1 drain 5")
      assert.equal("done", list[1]:line())
      wait_for_log(parent, "worker 1 %(pid %d+%) ended with status 0; another one is started in 0.1 s")
      assert.equal(2, list[2]:who().number)
    end)
  end)
end)
