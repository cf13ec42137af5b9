--- One step to the next generation that all of some workers take, or none: each is told to prepare it, and once all have answered, all
-- are told to commit it or all to drop it. Knows of a worker only that it can be sent messages.
-- @module korv.transaction

local core = require "korv.core"

local Transaction = {}
Transaction.__index = Transaction

local attempts = 0 -- of this process: an answer to one that is over is told by it

local function conclude(self)
  self.patience:stop()
  local outcome = { kind = self.failure and "abort" or "commit", number = self.number, attempt = self.attempt }
  for worker in pairs(self.members) do
    worker.transaction = nil
    if not self.failure then worker.generation = self.number end
    worker:send(outcome)
  end
  self.done(self.failure)
end

local function settle(self, worker, failure)
  self.failure = self.failure or failure
  if self.members[worker] ~= "asked" then return end
  self.members[worker] = "answered"
  self.unanswered = self.unanswered - 1
end

local function expire(self, seconds)
  for worker, state in pairs(self.members) do
    if state == "asked" then settle(self, worker, ("%s did not answer within %g s"):format(worker.name, seconds)) end
  end
  conclude(self)
end

--- Begins one.
-- @tparam int number of the generation
-- @tparam {Worker,...} workers one at least, each with `name`, `send(message)`; `transaction` is set while it takes part, `generation`
-- where it took the step
-- @tparam number seconds to answer in
-- @tparam function done called with nil, or with the first failure's message
-- @treturn Transaction
local function begin(number, workers, seconds, done)
  attempts = attempts + 1
  local self = setmetatable({ number = number, attempt = attempts, members = {}, unanswered = 0, done = done }, Transaction)
  self.patience = core.timer(function() expire(self, seconds) end)
  self.patience:start(seconds)
  for _, worker in ipairs(workers) do self:join(worker) end
  return self
end

--- Has one more worker take part.
-- @tparam Worker worker
function Transaction:join(worker)
  self.members[worker], worker.transaction = "asked", self
  self.unanswered = self.unanswered + 1
  worker:send { kind = "prepare", number = self.number, attempt = self.attempt }
end

--- Takes a worker's answer.
-- @tparam Worker worker
-- @tparam int attempt which the answer is for
-- @tparam ?string failure why it cannot take the step
function Transaction:answer(worker, attempt, failure)
  if attempt ~= self.attempt or self.members[worker] ~= "asked" then return end
  settle(self, worker, failure)
  if self.unanswered == 0 then conclude(self) end
end

--- Goes on without a worker that has ended: no generation comes of it.
-- @tparam Worker worker
function Transaction:lose(worker)
  settle(self, worker, ("%s ended while it loaded"):format(worker.name))
  self.members[worker], worker.transaction = nil, nil
  if self.unanswered == 0 then conclude(self) end
end

return begin
