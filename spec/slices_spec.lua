--- core.slices: what computes for long, and holds up nobody, and ends in time.

local core = require "korv.core"
local korv = require "korv"
local pair = require "spec.pair"
local uv = require "luv"

local pcall = pcall -- a global of a spec is looked up by a function of busted's

-- Runs a function in slices and waits for its end.
local function slices(fn, seconds, sources)
  local results
  local job = core.slices(fn, seconds or 60, function(...) results = table.pack(...) end, sources)
  pair.wait_for(function() return results end)
  return results, job
end

local function compute(seconds)
  local begin = os.clock()
  while os.clock() - begin < seconds do end
end

local function spin()
  while true do end
end

-- The turns that others get while fn runs: of a task that asks for one again and again, and of a timer.
local function turns_while(fn, sources)
  local of_task, of_timer, ended = 0, 0, false
  korv.spawn(function()
    while not ended do
      korv.sleep(0)
      of_task = of_task + 1
    end
  end)
  local timer = uv.new_timer()
  timer:start(1, 1, function() of_timer = of_timer + 1 end)
  local results = slices(fn, 60, sources)
  ended = true
  timer:close()
  return of_task, of_timer, results
end

describe("a function in slices", function()
  setup(pair.begin)
  teardown(pair.finish)
  before_each(function() pair.logged = {} end)

  it("gives back what it returned", function()
    assert.same({ n = 4, true, 1, nil, "c" }, (slices(function() return 1, nil, "c" end)))
    assert.same({ n = 1, true }, (slices(function() end)))
    assert.equal(501, slices(function() return table.unpack({}, 1, 500) end).n)
  end)

  it("gives back what it raised, with the traceback", function()
    local results = slices(function() error "boom" end)
    assert.is_false(results[1])
    assert.matches("slices_spec%.lua:%d+: boom", results[2])
    assert.matches("^stack traceback:\n.*slices_spec%.lua:%d+: in function", results[3])
    local err = {}
    assert.equal(err, slices(function() error(err) end)[2])
  end)

  it("may wait, and what is deep in pcalls and loops is unharmed", function()
    local results = slices(function()
      local sum, list = 0, {}
      for i = 1, 200000 do
        local _, value = pcall(function(...) return select("#", ...) + i end, i, i, i)
        list[#list + 1] = value
        if i % 50000 == 0 then korv.sleep(0.001) end
      end
      for _, value in ipairs(list) do sum = sum + value end
      return sum, ("%d"):rep(3, ","):format(table.unpack(list, 1, 3))
    end)
    assert.same({ n = 3, true, 200000 * 200001 // 2 + 3 * 200000, "4,5,6" }, results)
  end)

  it("holds up nobody", function()
    local of_task, of_timer, results = turns_while(function() compute(0.3) end)
    assert.is_true(results[1])
    assert.is_true(of_task >= 50, of_task .. " turns of a task")
    assert.is_true(of_timer >= 50, of_timer .. " turns of a timer")
  end)

  it("gives way in functions of the chosen sources only", function()
    local own, foreign = {}, {}
    own.source = debug.getinfo(1, "S").source
    foreign.compute = load("local begin = os.clock() while os.clock() - begin < 0.1 do end", "=foreign")
    local of_task = turns_while(function()
      foreign.compute()
      return 1 -- no tail call
    end, { [own.source] = true })
    assert.is_true(of_task <= 20, of_task .. " turns")
    of_task = turns_while(function() compute(0.1) end, { [own.source] = true })
    assert.is_true(of_task > 20, of_task .. " turns")
  end)

  it("gives way at the next line of a chosen source, where what it calls is what computes", function()
    local own = { [debug.getinfo(1, "S").source] = true }
    local foreign = load("local begin = os.clock() while os.clock() - begin < 0.005 do end", "=foreign")
    local of_task = turns_while(function()
      for _ = 1, 40 do
        foreign()
      end
    end, own)
    assert.is_true(of_task >= 30, of_task .. " turns")
  end)

  it("goes on where Lua cannot suspend it, and in coroutines of its own", function()
    local of_task, _, results = turns_while(function()
      table.sort({ 1, 2 }, function()
        compute(0.05)
        return false
      end)
      local inner = coroutine.wrap(function()
        compute(0.05)
        coroutine.yield "inner"
      end)
      return inner()
    end)
    assert.same({ n = 2, true, "inner" }, results)
    assert.is_true(of_task <= 20, of_task .. " turns")
  end)

  it("does not lose what wakes it", function()
    local results = slices(function()
      local count = 0
      for i = 1, 2000 do
        local got = korv.await(function(resume)
          if i % 3 == 0 then resume(i) else korv.spawn(resume, i) end
        end)
        for _ = 1, 500 do count = count end
        if got == i then count = count + 1 end
      end
      return count
    end, 60, { [debug.getinfo(1, "S").source] = true })
    assert.same({ n = 2, true, 2000 }, results)
  end)

  for what, fn in pairs {
    ["a loop"] = spin,
    ["a loop in a pcall"] = function()
      while true do pcall(spin) end
    end,
    ["pcalls of errors"] = function()
      while true do pcall(nil) end
    end,
    ["a loop that waits"] = function()
      while true do korv.sleep(0) end
    end,
    ["a sleep"] = function() korv.sleep(1000) end,
    ["a wait for nothing"] = function() korv.await(function() end) end,
  } do
    it("is stopped in time, and tells where: " .. what, function()
      local results = slices(fn, 0.05)
      assert.equal(2, results.n)
      assert.is_false(results[1])
      assert.matches("^[^\n]*%.lua:%d+: stopped after 0.05 s of loading$", results[2])
      if what ~= "a wait for nothing" then assert.matches("slices_spec%.lua:%d+: ", results[2]) end -- else in korv's own await
    end)
  end

  it("has its to-be-closed variables closed where it is stopped, and an error there is logged", function()
    local closed
    local results = slices(function()
      local one <close> = setmetatable({}, { __close = function() closed = true; error "no" end }) -- luacheck: ignore 211
      spin()
    end, 0.05)
    assert.same({ false, true }, { results[1], closed })
    assert.matches("to%-be%-closed variable of a load that was stopped", pair.logged[1])
  end)

  it("is cancelled, once", function()
    local results
    local job = core.slices(spin, 60, function(...) results = table.pack(...) end)
    job:cancel()
    job:cancel()
    pair.wait_for(function() return results end)
    assert.same({ n = 2, false, "cancelled" }, results)
    job:cancel()
  end)

  it("leaves the watchdog in force, and wins nothing against it", function()
    core.cpu_limit(0.05)
    for what, fn in pairs {
      sort = function() table.sort({ 1, 2, 3 }, spin) end,
      gsub = function()
        while true do pcall(string.gsub, "x", "x", spin) end
      end,
      own_coroutine = function() coroutine.wrap(spin)() end,
    } do
      local results = slices(fn)
      assert.is_false(results[1])
      assert.matches("slices_spec%.lua:%d+: stopped after 0.05 s of computing", tostring(results[2]), what)
    end
    assert.is_true(slices(function() compute(0.2) end)[1]) -- in slices it is no runaway
    core.cpu_limit(0)
  end)

  it("leaves no hook behind on a coroutine that others use next", function()
    for i = 1, 20 do
      slices(function()
        compute(0.003)
        if i % 2 == 0 then error "boom" end
      end)
      assert.is_nil((pair.in_task(function() return (debug.gethook()) end)))
    end
  end)

  it("does nothing to those that run beside it", function()
    local turn, mixed = 0, false
    local function steady()
      for _ = 1, 3 do
        turn = turn + 1
        local before = turn
        compute(0.02)
        mixed = mixed or turn ~= before
        korv.sleep(0)
      end
    end
    local left = 2
    for _ = 1, 2 do
      korv.spawn(function()
        steady()
        left = left - 1
      end)
    end
    slices(function() compute(0.1) end)
    pair.wait_for(function() return left == 0 end)
    assert.is_false(mixed)
  end)

  it("leaves nothing in memory", function()
    local kept = setmetatable({}, { __mode = "k" })
    local function once(i)
      local marker = {}
      kept[marker] = true
      local _, job = slices(function()
        if i % 3 == 1 then error(marker) end
        if i % 3 == 2 then spin() end
        return marker
      end, 0.01, { [debug.getinfo(1, "S").source] = marker })
      kept[job] = true
    end
    for i = 1, 12 do once(i) end
    pair.in_task(function() korv.sleep(0) end)
    collectgarbage()
    collectgarbage()
    assert.is_nil(next(kept))
  end)
end)
