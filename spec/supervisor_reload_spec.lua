--- The supervisor's reloads: all workers take the step to the next generation, or none, whatever becomes of them meanwhile.

local child = require "korv.child"
local supervisor = require "korv.supervisor"
local supervised = require "spec.supervised"
local support = require "spec.support"
local uv = require "luv"

local begin, connect, crew, events = supervised.begin, supervised.connect, supervised.crew, supervised.events
local occurrences, order, start = supervised.occurrences, supervised.order, supervised.start
local wait_for_event, wait_for_log = supervised.wait_for_event, supervised.wait_for_log
local wait_until_ready, write_script = supervised.wait_until_ready, supervised.write_script

describe("the supervisor", function()
  after_each(supervised.finish)

  describe("reloads", function()
    local function all_are(list, generation, name)
      for i, client in ipairs(list) do
        local who = client:who()
        assert.same({ i, generation, name }, { who.number, who.generation, who.name })
      end
    end

    it("all workers", function()
      local parent = start { workers = 3 }
      local list = crew(parent, 3)
      all_are(list, 1, "first")
      write_script(parent, { name = "second" })
      assert.equal("reloaded", order(parent, "reload"))
      all_are(list, 2, "second")
      wait_for_log(parent, "info reloaded: generation 2")
    end)

    it("none where one fails, and says why once", function()
      local parent = start { workers = 3 }
      local list = crew(parent, 3)
      write_script(parent, { name = "second", fail = 2, message = "app.lua:3: " })
      assert.equal([[not reloaded: app.lua:3: \xff]], order(parent, "reload"))
      all_are(list, 1, "first")
      assert.same({ 3, 0, 2 }, { occurrences(events(parent), "prepare 2"), occurrences(events(parent), "commit"),
                                 occurrences(events(parent), "discard 2") })
      write_script(parent, { name = "third" })
      assert.equal("reloaded", order(parent, "reload"))
      all_are(list, 2, "third")
      assert.equal(1, occurrences(parent.stderr, "error not reloaded, generation 1 goes on: app.lua:3: "))
    end)

    it("none where one ends meanwhile; its successor comes once it can", function()
      local parent = start { workers = 3 }
      local list = crew(parent, 3)
      write_script(parent, { name = "second", die = 3, slow = 0.1 })
      assert.equal("not reloaded: worker 3 ended while it loaded", order(parent, "reload"))
      write_script(parent, { name = "third" })
      wait_until_ready(parent, 3)
      assert.equal("reloaded", order(parent, "reload"))
      list[3] = connect(parent)
      all_are(list, 2, "third")
    end)

    it("none where one does not answer; that one's answer may still come, and is dropped", function()
      local parent = start { workers = 2, load_limit = 0 }
      local list = crew(parent, 2)
      write_script(parent, { name = "second", hang = 2 })
      assert.equal("not reloaded: worker 2 did not answer within 5 s", order(parent, "reload"))
      all_are(list, 1, "first")
      write_script(parent, { name = "third" })
      assert.equal("not reloaded: what was to be loaded before has not ended yet", order(parent, "reload"))
      all_are(list, 1, "first")
      wait_for_event(parent, "2 discard 2")
      assert.equal("reloaded", order(parent, "reload"))
      all_are(list, 2, "third")
    end)

    it("once more for all who ask meanwhile", function()
      local parent = start { workers = 2 }
      local list = crew(parent, 2)
      write_script(parent, { name = "second", slow = 0.3 })
      parent:write "reload\n"
      wait_for_event(parent, "prepare 2")
      parent:write "reload\nreload\nreload\n"
      for _ = 1, 4 do assert.equal("reloaded", parent:line()) end
      all_are(list, 3, "second")
      assert.equal(4, occurrences(events(parent), "prepare"))
    end)

    it("when a worker asks, and tells it what came of it", function()
      local parent = start { workers = 2 }
      local list = crew(parent, 2)
      write_script(parent, { name = "second" })
      assert.equal("reloaded", list[2]:ask "reload")
      all_are(list, 2, "second")
      write_script(parent, { name = "third", fail = 1, message = "a slip" })
      list[1]:send "reload"
      assert.equal([[a slip\xff]], list[2]:ask "reload")
      assert.equal([[a slip\xff]], list[1]:line())
      all_are(list, 2, "second")
    end)

    it("not without a worker", function()
      local parent = begin({ workers = 1 }, { name = "first", start_slow = 0.5 })
      assert.equal("not reloaded: no worker is ready", order(parent, "reload"))
      assert.equal("started first", parent:line())
      assert.equal("reloaded", order(parent, "reload"))
    end)

    -- Two workers, the second of which takes a step while the first one's successor is still starting.
    local function reloaded_meanwhile()
      local parent = start { workers = 2 }
      local list = crew(parent, 2)
      write_script(parent, { name = "second", start_slow = 0.5 })
      uv.kill(list[1]:who().pid, "sigkill")
      wait_for_event(parent, "1 load 1.*1 load 1")
      assert.equal("reloaded", order(parent, "reload"))
      return parent, list
    end

    -- The first worker's client, once that is there again.
    local function reconnect(parent)
      wait_until_ready(parent, 2)
      return connect(parent)
    end

    it("in a worker that started before and is ready after it: it takes the step alone", function()
      local parent, list = reloaded_meanwhile()
      wait_for_event(parent, "1 start 1 .*1 start 1 .*1 prepare 2\n1 commit 2")
      list[1] = reconnect(parent)
      all_are(list, 2, "second")
    end)

    it("in a worker that becomes ready meanwhile: it takes the step with the others", function()
      local parent = start { workers = 2 }
      local list = crew(parent, 2)
      write_script(parent, { name = "second", slow = 1 })
      uv.kill(list[1]:who().pid, "sigkill")
      wait_for_log(parent, "another one is started")
      parent:write "reload\n"
      wait_for_event(parent, "1 start 1 .*1 start 1 .*1 prepare 2")
      assert.is_nil(events(parent):find "commit")
      assert.equal("reloaded", parent:line())
      list[1] = reconnect(parent)
      all_are(list, 2, "second")
      assert.equal(2, occurrences(events(parent), "prepare"))
    end)

    it("kills a worker that cannot take the step that the others took", function()
      local parent = reloaded_meanwhile()
      write_script(parent, { name = "third", fail = 1 })
      wait_for_log(parent, "error worker 1 cannot load generation 2 and is killed: it is broken in 1\\xff")
      write_script(parent, { name = "fourth" })
      wait_for_event(parent, "1 start 2 ")
      assert.equal(2, reconnect(parent):who().generation)
    end)

    it("keys, when it is told to or a worker notices", function()
      local parent = start { workers = 3 }
      parent:write "keys\n"
      for i = 1, 3 do wait_for_event(parent, i .. " keys") end
      local list = crew(parent, 3)
      local watching = tonumber(events(parent):match "(%d) watch everything")
      assert.equal(1, occurrences(events(parent), "watch"))
      assert.equal("told", list[watching]:ask "changed keys")
      for i = 1, 3 do wait_for_event(parent, i .. " keys.*" .. i .. " keys") end
    end)

    it("when the one worker that watches notices; another one watches once that is gone", function()
      local parent = start { workers = 2 }
      local list = crew(parent, 2)
      local watching = tonumber(events(parent):match "(%d) watch everything")
      local other = 3 - watching
      assert.equal("nobody watches here", list[other]:ask "changed scripts")
      write_script(parent, { name = "second" })
      assert.equal("told", list[watching]:ask "changed scripts")
      wait_for_log(parent, "reloaded: generation 2")
      all_are(list, 2, "second")
      uv.kill(list[watching]:who().pid, "sigkill")
      wait_for_event(parent, other .. " watch everything")
      assert.equal("told", list[other]:ask "changed scripts")
      wait_for_log(parent, "reloaded: generation 3")
    end)
  end)
end)

describe("who asked for a reload and has died", function()
  local new = child.new

  teardown(function()
    child.new = new
    support.finish()
  end)

  it("is not answered in its successor's place", function()
    for _, successor in ipairs { "first", "second" } do
      local told, sent = nil, {}
      local worker = { name = "worker 1", state = "ready", generation = 1, process = "first", counters = {} }
      function worker.send(_, message) sent[#sent + 1] = message.kind end
      child.new = function(_, _, given)
        told = given
        return worker
      end
      supervisor.new { argv = { "none" }, sockets = { 0 }, workers = 1 }
      told.message(worker, { kind = "reload" })
      worker.process = successor
      told.message(worker, { kind = "prepared", attempt = worker.transaction.attempt })
      assert.same({ "prepare", "commit", successor == "first" and "reloaded" or nil }, sent)
    end
  end)
end)
