--- The two phases of a step that all workers take or none, with workers that only note what they are sent.

local begin = require "korv.transaction"
local support = require "spec.support"

local function crew(n)
  local workers = {}
  for i = 1, n do
    workers[i] = { name = "worker " .. i, generation = 1, sent = {} }
    workers[i].send = function(worker, message) worker.sent[#worker.sent + 1] = message end
  end
  return workers
end

local outcome -- { failure or false }
local function done(failure) outcome = { failure or false } end

local function sent(worker)
  local kinds = {}
  for i, message in ipairs(worker.sent) do kinds[i] = message.kind .. " " .. message.number end
  return table.concat(kinds, ", ")
end

local function answer(transaction, worker, failure) transaction:answer(worker, transaction.attempt, failure) end

describe("a transaction", function()
  before_each(function() outcome = nil end)
  teardown(support.finish)

  it("commits once all have prepared, not before", function()
    local workers = crew(2)
    local step = begin(2, workers, 10, done)
    answer(step, workers[1])
    answer(step, workers[1])
    assert.same({ "prepare 2", "prepare 2" }, { sent(workers[1]), sent(workers[2]) })
    assert.is_nil(outcome)
    answer(step, workers[2])
    assert.same({ false }, outcome)
    for _, worker in ipairs(workers) do
      assert.equal("prepare 2, commit 2", sent(worker))
      assert.same({ 2, nil }, { worker.generation, worker.transaction })
    end
  end)

  it("aborts where one fails, once none loads any more; the first failure counts", function()
    local workers = crew(3)
    local step = begin(2, workers, 10, done)
    answer(step, workers[2], "first")
    answer(step, workers[3], "second")
    assert.is_nil(outcome)
    answer(step, workers[1])
    assert.same({ "first" }, outcome)
    for _, worker in ipairs(workers) do assert.same({ "prepare 2, abort 2", 1 }, { sent(worker), worker.generation }) end
  end)

  it("is let go of once it is over", function()
    local workers, kept = crew(1), setmetatable({}, { __mode = "k" })
    for _ = 1, 10 do
      local step = begin(2, workers, 10, done)
      kept[step] = true
      answer(step, workers[1])
    end
    collectgarbage()
    collectgarbage()
    assert.is_nil((next(kept)))
  end)

  it("takes no answer for another attempt", function()
    local workers = crew(2)
    local before = begin(2, workers, 10, done)
    for _, worker in ipairs(workers) do answer(before, worker, "no") end
    outcome = nil
    local step = begin(2, workers, 10, done)
    step:answer(workers[1], before.attempt)
    answer(step, workers[2])
    assert.is_nil(outcome)
    answer(step, workers[1])
    assert.same({ false }, outcome)
  end)

  it("fails where one ends, before its answer or after it", function()
    for _, has_answered in ipairs { false, true } do
      local workers = crew(2)
      local step = begin(2, workers, 10, done)
      if has_answered then answer(step, workers[1]) end
      step:lose(workers[1])
      assert.is_nil(outcome)
      answer(step, workers[2])
      assert.same({ "worker 1 ended while it loaded" }, outcome)
      assert.same({ "prepare 2", "prepare 2, abort 2" }, { sent(workers[1]), sent(workers[2]) })
      outcome = nil
    end
  end)

  it("waits for one that joins", function()
    local workers, late = crew(1), crew(1)[1]
    local step = begin(2, workers, 10, done)
    step:join(late)
    answer(step, workers[1])
    assert.is_nil(outcome)
    answer(step, late)
    assert.same({ "prepare 2, commit 2", 2 }, { sent(late), late.generation })
  end)

  it("fails where one does not answer in time", function()
    local workers = crew(2)
    local step = begin(2, workers, 0.05, done)
    answer(step, workers[1])
    assert.is_true(support.wait_for(function() return outcome ~= nil end))
    assert.same({ "worker 2 did not answer within 0.05 s" }, outcome)
    assert.equal("prepare 2, abort 2", sent(workers[2]))
    answer(step, workers[2]) -- too late
    assert.equal("prepare 2, abort 2", sent(workers[2]))
  end)
end)
