--- One load of endpoint scripts: aside, whole or not at all, with what belongs to it, until nothing of it is left.

local app = require "korv.app"
local core = require "korv.core"
local generation = require "korv.generation"
local korv = require "korv"
local pair = require "spec.pair"
local scripts = require "spec.scripts"
local waiting = require "spec.waiting"

local endpoint, get, load_text = scripts.endpoint, scripts.get, scripts.load_text

-- What a script of this text is refused with, the folder being left out.
local function refused(text, files, options)
  local path, made, message, name = load_text(text, files, options)
  assert(not made, "it was not refused")
  return (message:gsub(pair.literal(path:match "^.*/"), "")), name
end

-- A script whose function calls something on the app, on line 2.
local function calling(text) return (endpoint("return 200"):gsub("app:get", text:gsub("%%", "%%%%") .. " %0")) end

local function collect()
  pair.in_task(function() korv.sleep(0) end)
  collectgarbage()
  collectgarbage()
end

describe("a load", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("makes an app of all scripts, with what it is given", function()
    local state = { kept = 1 }
    local folder = scripts.folder { ["b.lua"] = endpoint "return 200, 'b'", ["a.lua"] = [[
      return function(app)
        app:use(function(request, next) local code, body = next(request) return code, body .. 'a' .. app.generation .. app.state.kept end)
      end]] }
    local made = assert(scripts.load(folder, { number = 7, state = state }))
    assert.same({ 200, "ba71" }, { get(made, "/x") })
    assert.same({ 7, true }, { made.number, made.app.state == state })
  end)

  it("begins with the endpoints, middleware and checks of a base, which stays as it was", function()
    local base, checked = app.new(), 0
    base:get("/base", function() return 200, "base" end)
    base:use(function(request, proceed)
      local code, body = proceed(request)
      return code, body .. " in base"
    end)
    base:check(function() checked = checked + 1 end)
    local _, made = load_text(endpoint "return 200, 'x'", {}, { base = base })
    assert.same({ "base in base", "x in base" }, { (select(2, get(made, "/base"))), (select(2, get(made, "/x"))) })
    assert.is_nil(base:entry { verb = "GET", resource = "/x" })
    assert.matches("^app.lua:2: GET /base .* is registered already, as /base %(.*generation_spec.lua:%d+%)",
      refused(endpoint("", ""):gsub("/x", "/base"), {}, { base = base }))
    assert.equal(1, checked)
    assert.is_truthy((scripts.load({}, { base = base })))
  end)

  it("finds the files of a folder anew each time", function()
    local folder = scripts.folder { ["a.lua"] = endpoint "return 200" }
    assert(scripts.load(folder))
    local file = assert(io.open(folder .. "/b.lua", "w"))
    file:write(endpoint("return 200"):gsub("/x", "/b"), "")
    file:close()
    assert.equal(200, (get(assert(scripts.load(folder)), "/b")))
  end)

  local SHAPE = "a script returns a function that takes the app and registers its endpoints: return function(app) … end"
  local twice = "return function(app)\n  app:get('/x', print)\n  app:get('/x', print)\nend"

  for what, case in pairs {
    ["of syntax"] = { "app.lua:2: unexpected symbol near ')'", "\n)" },
    ["at load"] = { "app.lua:2: boom", "\nerror 'boom'" },
    ["at load, of two lines"] = { "app.lua:1: boom", "error 'boom\\nbang'" },
    ["at load, an object"] = { "app.lua: an object", "error(setmetatable({}, { __tostring = function() return 'an object' end }))" },
    ["at load, an object without a text"] =
      { "app.lua: an error that is a table", "error(setmetatable({}, { __tostring = function() error 'no' end }))" },
    ["at load, none"] = { "app.lua: nil", "error()" },
    ["in a chunk of its own"] = { "app.lua: [string \"error 'boom'\"]:1: boom", "load [[error 'boom']] ()" },
    ["at register"] = { "app.lua:1: boom", "return function(app) error 'boom' end" },
    ["nothing returned"] = { "app.lua: " .. SHAPE, "" },
    ["the app at the top level"] = { "app.lua:2: attempt to index a nil value (global 'app'): " .. SHAPE, "\napp:get('/x', print)" },
    ["the app at the top level, called"] = { "app.lua:1: attempt to call a nil value (global 'app'): " .. SHAPE, "app()" },
    ["the app beside the function that takes it"] = { "app.lua:1: attempt to index a nil value (global 'app')",
      "local function add() app:get('/x', print) end return function(app) add() end" },
    ["misuse"] = { nil, "return function(app) app:get('/x', print, {}) end", "^app.lua:1: GET /x: options must be a table" },
    ["a duplicate endpoint"] = { nil, twice, "^app.lua:3: GET /x %(%[C%]%) is registered already, as /x" },
    ["a duplicate endpoint, in a last call"] = { nil, (twice:gsub("  app:get%('/x', print%)\nend", "  return app:get('/x', print)\nend")),
      "^app.lua: GET /x %(%[C%]%) is registered already, as /x" },
    ["no endpoint"] = { "no endpoint is registered: a script's function calls app:get and the like", "return function() end" },
    ["a check"] = { "app.lua:2: app:check refused: no", calling "app:check(function() return nil, 'no' end)" },
    ["a check that says nothing"] =
      { "app.lua:2: app:check refused: it did not say why", calling "app:check(function() return false end)" },
    ["a check that raises"] = { "app.lua:2: no", calling "app:check(function() error 'no' end)" },
    ["a check that is none"] = { "app.lua:2: app:check: the check must be a function (got a nil)", calling "app:check(nil)" },
    ["an event that is none"] = { "app.lua:2: app:on: the event is 'unload' (got load)", calling "app:on('load', print)" },
    ["a timer that is none"] = { "app.lua:1: korv.every: seconds, the first argument, is a number from 0.001 on (got 0)",
      "local korv = require 'korv' korv.every(0, print)" },
    ["a reload of itself"] = { "app.lua:2: app:reload: the script is being loaded just now", calling "app:reload()" },
  } do
    it("is refused, once and with file and line, for an error: " .. what, function()
      local message, name = refused(case[2], {}, { reload = print })
      if case[3] then assert.matches(case[3], message) else assert.equal(case[1], message) end
      assert.equal("ELOAD", name)
    end)
  end

  it("is refused for files that are not there", function()
    assert.matches("^no/such%.lua: cannot open", (select(2, scripts.load "no/such.lua")))
    assert.same({ "ENOENT" }, { (select(3, scripts.load(scripts.folder {}))) })
  end)

  for what, text in pairs {
    ["an endless loop"] = "\nwhile true do end",
    ["a loop of pcalls"] = "\nwhile true do pcall(function() while true do end end) end",
    ["in the function it returns"] = "return function(app)\nwhile true do pcall(error) end end",
    ["in a module"] = { "local m = require 'm'", "\nlocal function spin() while true do pcall(error) end end spin()", "m.lua:2" },
    ["in a chunk of its own"] = { "load('while true do end', '@own.lua')()", "", "own.lua:1" },
    ["in a check"] = "return function(app) app:get('/x', print)\napp:check(function() while true do end end) end",
    ["asleep"] = "\nrequire 'korv'.sleep(1000)",
    ["asleep in a module"] = { "local m = require 'm'", "\nrequire 'korv'.sleep(1000)", "m.lua:2" },
    ["asleep in korv's own code"] = "local korv = require 'korv'\nkorv.await(function() end)",
  } do
    it("is stopped in time, and tells where: " .. what, function()
      local case = type(text) == "table" and text or { text, "", "app.lua:2" }
      local message, name = refused(case[1], { ["m.lua"] = case[2] }, { limit = 0.05 })
      local place = case[3] == "own.lua:1" and "app.lua: own.lua:1" or case[3]
      assert.same({ place .. ": stopped after 0.05 s of loading", "ELOAD" }, { message, name })
    end)
  end

  it("is stopped by the watchdog where slices cannot reach it, and tells where", function()
    core.cpu_limit(0.05)
    local spin = "\nlocal function spin() while true do end end "
    for _, call in ipairs { "coroutine.wrap(spin)()", "table.sort({ 1, 2 }, spin)", "pcall(string.gsub, 'x', 'x', spin)" } do
      assert.equal("app.lua:2: stopped after 0.05 s of computing without waiting (cpu_limit)", (refused(spin .. call)))
    end
    core.cpu_limit(0)
  end)

  it("holds up nobody while it computes, and is heard of when it is whole", function()
    local turns, made = 0, nil
    local busy = "local begin = os.clock() while os.clock() - begin < 0.15 do end\n"
    local path = scripts.folder { ["app.lua"] = endpoint("return 200", "require 'm'\n" .. busy), ["m.lua"] = busy } .. "/app.lua"
    generation.load({ path }, {}, function(result) made = result end)
    korv.spawn(function()
      while not made do
        korv.sleep(0)
        turns = turns + 1
      end
    end)
    pair.wait_for(function() return made end)
    assert.is_true(turns >= 50, turns .. " turns")
  end)

  it("is cancelled", function()
    local results
    local job = generation.load({ (load_text "return function() end") }, {}, function(...) results = table.pack(...) end)
    job:cancel()
    pair.wait_for(function() return results end)
    assert.same({ nil, "cancelled", "ELOAD" }, { results[1], results[2], results[3] })
  end)
end)

describe("what belongs to a generation", function()
  setup(pair.begin)
  teardown(pair.finish)
  before_each(function() pair.logged = {} end)

  local ticking = endpoint("return 200", [[
    local korv = require "korv"
    Timer = korv.every(0.001, function() State.ticks = State.ticks + 1 end)]]):gsub("return function%(app%)", "%0 State = app.state")

  it("timers run from its start to its end", function()
    local state = { ticks = 0 }
    local _, made = load_text(ticking, {}, { state = state })
    waiting.settled(function() return 0 end)
    assert.equal(0, state.ticks)
    made:start()
    pair.wait_for(function() return state.ticks >= 3 end)
    made:stop()
    local ticks = waiting.settled(function() return -state.ticks end)
    waiting.settled(function() return 0 end)
    assert.equal(ticks, -state.ticks)
  end)

  it("timers of endpoints run while it serves, and those stopped before they began never", function()
    local text = endpoint("korv.every(0.001, function() State.ticks = State.ticks + 1 end) return 200", [[
      local korv = require "korv"
      local timer = korv.every(0.001, function() error "stopped before" end)
      timer:stop()]]):gsub("return function%(app%)", "%0 State = app.state")
    local state = { ticks = 0 }
    local _, made = load_text(text, {}, { state = state })
    made:start()
    get(made, "/x")
    collectgarbage()
    pair.wait_for(function() return state.ticks >= 3 end)
    made:stop()
    local ticks = -waiting.settled(function() return -state.ticks end)
    get(made, "/x")
    waiting.settled(function() return 0 end)
    assert.same({ ticks, 0 }, { state.ticks, #pair.logged })
  end)

  it("timers that an endpoint has stopped are forgotten", function()
    local kept = setmetatable({}, { __mode = "k" })
    local text = endpoint("local t = require 'korv'.every(1, print) t:stop() State.kept[t] = true return 200")
    local _, made = load_text(text:gsub("return function%(app%)", "%0 State = app.state"), {}, { state = { kept = kept } })
    made:start()
    get(made, "/x")
    assert.is_truthy(next(kept))
    collect()
    assert.is_nil(next(kept))
    made:stop()
  end)

  local unloading = endpoint("return 200", ""):gsub("app:get", [[
    app:on("unload", function() app.state.log("first, waits") require "korv".sleep(0.001) app.state.log "waited" end)
    app:on("unload", function() error "no" end)
    app:on("unload", function() app.state.log "last" end)
    %0]])

  it("unload functions run once, the last first, each by itself", function()
    local lines = {}
    local state = { log = function(line) lines[#lines + 1] = line end }
    local _, made = load_text(unloading, {}, { state = state })
    made:start()
    made:stop()
    assert.same({}, lines)
    made:unload()
    made:unload()
    pair.wait_for(function() return #lines == 3 end)
    assert.same({ "last", "first, waits", "waited" }, lines)
    pair.wait_for_log "error in korv.spawn: .*app.lua:%d+: no"
  end)

  it("unload functions run where the load fails", function()
    local lines = {}
    local state = { log = function(line) lines[#lines + 1] = line end }
    for _, failure in ipairs { "error 'late'", "while true do end", "app:check(function() return false end)" } do
      lines = {}
      refused((unloading:gsub("end\n$", failure .. " %0")), {}, { state = state, limit = 0.05 })
      pair.wait_for(function() return #lines == 3 end)
    end
  end)

  it("app:reload waits for what the server says", function()
    local resume
    local text = endpoint("return 200, { App:reload() }"):gsub("return function%(app%)", "%0 App = app")
    local _, made = load_text(text, {}, { reload = function(done) resume = done end })
    local handler, answers = made.app:handler(), {}
    for i = 1, 2 do
      korv.spawn(function() answers[i] = select(2, handler { verb = "GET", resource = "/x" }) end)
      pair.wait_for(function() return resume end)
      assert.is_nil(answers[i])
      if i == 1 then resume(true) else resume(nil, "app.lua:1: no") end
      pair.wait_for(function() return answers[i] end)
      resume = nil
    end
    assert.same({ { true }, { nil, "app.lua:1: no" } }, answers)
    assert.same({ nil, "app:reload: no scripts are served by this app", "ENOTSUP" }, { app.new():reload() })
  end)
end)

describe("korv.every", function()
  setup(pair.begin)
  teardown(pair.finish)
  before_each(function() pair.logged = {} end)

  it("runs a function that may wait, never two at once, until it is stopped", function()
    local running, most, runs = 0, 0, 0
    local timer = korv.every(0.001, function()
      running = running + 1
      most = math.max(most, running)
      korv.sleep(0.005)
      running, runs = running - 1, runs + 1
    end)
    pair.wait_for(function() return runs >= 3 end)
    timer:stop()
    pair.wait_for(function() return running == 0 end)
    local ended = runs
    waiting.settled(function() return 0 end)
    assert.same({ 1, ended }, { most, runs })
  end)

  it("goes on after errors and after the watchdog, and logs them", function()
    core.cpu_limit(0.02)
    local runs = 0
    local timer = korv.every(0.001, function()
      runs = runs + 1
      if runs == 1 then error "boom" end
      while runs == 2 do runs = 2 end
    end)
    pair.wait_for(function() return runs >= 2 end)
    pair.wait_for_log "generation_spec.lua:%d+: boom"
    pair.wait_for_log "generation_spec.lua:%d+: stopped after 0.02 s of computing"
    timer:stop()
    core.cpu_limit(0)
  end)

  it("may be stopped in its own run", function()
    local runs, timer = 0, nil
    timer = korv.every(0.001, function()
      runs = runs + 1
      timer:stop()
    end)
    pair.wait_for(function() return runs == 1 end)
    waiting.settled(function() return 0 end)
    assert.equal(1, runs)
  end)

  it("is told of slips", function()
    for _, seconds in ipairs { 0, -1, 0 / 0, math.huge, "1" } do
      pair.must_raise("korv%.every: seconds, the first argument", function() korv.every(seconds, print) end)
    end
    pair.must_raise("korv%.every: the second argument is the function", function() korv.every(1) end)
  end)

  it("does not keep a program running", function()
    local done = pair.program [[
      local runs = 0
      korv.every(0.01, function() runs = runs + 1 end)
      korv.spawn(function() while runs < 3 do korv.sleep(0.005) end print "three" end)
      korv.run()]]
    assert.same({ 0, "three\n", "" }, { done.code, done.stdout, done.stderr })
  end)
end)

describe("a generation that is used no more", function()
  setup(pair.begin)
  teardown(pair.finish)

  local kept = setmetatable({}, { __mode = "k" })

  local text = endpoint("return 200, m", [[
    local m = require "m"
    local korv = require "korv"
    local timer = korv.every(0.001, function() m.ticks = m.ticks + 1 end)]]):gsub("return function%(app%)", [[
    return function(app)
      app.state.keep(app, m, _G, timer, require)
      app:on("unload", function() m.unloaded = true korv.sleep(0) end)
      app:check(function() return app and m end)
      if app.state.fails then app.state.fails() end]])

  local function load_one(fails)
    local path = scripts.folder { ["app.lua"] = text, ["m.lua"] = "return { ticks = 0 }" } .. "/app.lua"
    local state = { fails = fails, keep = function(...)
      for _, value in ipairs { ... } do kept[value] = true end
    end }
    return scripts.load(path, { state = state, limit = 0.05, reload = print })
  end

  local function left()
    local count = 0
    for _ in pairs(kept) do count = count + 1 end
    return count
  end

  it("is collected, with its environment, app, modules and timers", function()
    local made = assert(load_one())
    local handler = made.app:handler()
    made:start()
    assert.equal(5, left())
    local m = select(2, handler { verb = "GET", resource = "/x" })
    pair.wait_for(function() return m.ticks > 1 end)
    made:stop()
    made:unload()
    m = nil -- luacheck: ignore 311
    collect()
    assert.equal(5, left()) -- the timer as well: the script holds it
    handler, made = nil, nil -- luacheck: ignore 311
    collect()
    assert.equal(0, left())
  end)

  it("is collected where its load has failed, in whatever way", function()
    for _, fails in ipairs { function() error "no" end, function() korv.sleep(1000) end, function() error { "no" } end } do
      assert.is_nil((load_one(fails)))
      collect()
      assert.equal(0, left())
    end
  end)

  it("is not, while one of its requests still runs", function()
    local waits, resume
    local function begin()
      local state = { keep = function(thing) kept[thing] = true end, wait = function() korv.await(function(r) resume = r end) end }
      local path, made = load_text(
        endpoint("App.state.wait() return 200"):gsub("return function%(app%)", "%0 app.state.keep(app) App = app"), {}, { state = state })
      assert.is_string(path)
      local handler = made.app:handler()
      made:start()
      korv.spawn(function()
        handler { verb = "GET", resource = "/x" }
        waits = false
      end)
      pair.wait_for(function() return resume end)
      made:stop()
      made:unload()
    end
    begin()
    collect()
    assert.equal(1, left())
    resume()
    resume = nil
    pair.wait_for(function() return waits == false end)
    collect()
    assert.equal(0, left())
  end)

  it("is one of 2,000, and memory is flat", function()
    local path = scripts.folder { ["app.lua"] = text, ["m.lua"] = "return { ticks = 0, load = ('x'):rep(10000) }" } .. "/app.lua"
    local broken = scripts.folder { ["app.lua"] = text .. "\nerror 'no'" } .. "/app.lua"
    local state, made = { keep = function() end }, nil
    local function many(n)
      for i = 1, n do
        local next_one = scripts.load(i % 3 == 0 and broken or path, { state = state, number = i })
        if next_one then
          next_one:start()
          if made then
            made:stop()
            made:unload()
          end
          made = next_one
        end
      end
      collect()
      return collectgarbage "count"
    end
    many(100)
    local before = many(100)
    local after = many(2000)
    assert.is_true(after - before < 200, ("%.0f KB more after 2,000 loads"):format(after - before))
    made:stop()
  end)
end)

