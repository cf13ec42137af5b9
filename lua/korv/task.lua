--- Waiting in straight lines: what looks synchronous in an endpoint or in `korv.spawn` suspends its coroutine, and the loop serves
-- others meanwhile.
-- @module korv.task

local core = require "korv.core"
local uv = require "luv"

local task = {}

--- Runs a function in a coroutine of korv's, beginning at the next turn of the loop. An error in it is logged and ends nothing else.
-- @function spawn
-- @tparam function fn may wait: `korv.sleep`, `korv.await`, a client's calls
-- @param ... its arguments
task.spawn = core.spawn

--- Turns a function that calls back into one that returns. Works in an endpoint and in `korv.spawn`; elsewhere it raises.
-- @tparam function begin called at once with `resume`; whatever `resume(…)` is called with is what `await` returns. It may be called
-- at once or later, from a luv callback or another coroutine; a second call is ignored. What `begin` returns, if it is a function, is
-- called where the wait is cancelled: by a deadline, a client that went away, `{"cancel": …}`.
-- @return what `resume` was called with
-- @usage local path = korv.await(function(resume)
--   local request = uv.fs_realpath(".", function(problem, path) resume(path or problem) end)
--   return function() request:cancel() end
-- end)
function task.await(begin)
  if type(begin) ~= "function" then
    error(("korv.await: its argument is a function, which is called with resume (got a %s)"):format(type(begin)), 2)
  end
  core.must_wait()
  local early, this, ticket
  local undo = begin(function(...)
    if ticket then
      core.wake(this, ticket, ...)
    elseif not early then
      early = table.pack(...)
    end
  end)
  if early then return table.unpack(early, 1, early.n) end
  this, ticket = core.ticket()
  return core.wait(this, type(undo) == "function" and undo or nil)
end

--- Like `await`, but where no loop runs it runs the loop until there is an answer. In a luv callback it raises.
-- @tparam function begin
-- @tparam[opt=2] int level whose fault it is, as for `error`
-- @return what `resume` was called with
function task.wait(begin, level)
  local here, why = core.here()
  if here then return task.await(begin) end
  if uv.loop_mode() then error(why, level or 2) end
  local results
  begin(function(...) results = results or table.pack(...) end)
  while not results do uv.run "once" end
  return table.unpack(results, 1, results.n)
end

--- Waits.
-- @function sleep
-- @tparam number seconds with a fraction; 0 lets everybody else have a turn
task.sleep = core.sleep

--- Runs the loop until nothing is left to do or `korv.stop` is called. A program's last line, where no server's `start` is.
function task.run()
  if uv.loop_mode() then error("korv.run: the loop runs already", 2) end
  uv.run()
end

--- Ends `korv.run`, or a server's `start`, at the end of this turn.
function task.stop() uv.stop() end

return task
