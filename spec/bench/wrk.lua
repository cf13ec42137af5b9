-- For wrk: sends a JSON document again and again, checks each answer, and prints the counts as one line of JSON.
--
--     wrk … URL -- DOCUMENT ANSWER
--
-- This runs in wrk's own LuaJIT, which calls the functions that are global here.
-- luacheck: globals wrk setup init response done wrong
local wanted
local threads = {}
wrong = 0 -- each thread has its own

function setup(thread) threads[#threads + 1] = thread end

function init(arguments)
  wrk.method, wrk.body, wanted = "POST", arguments[1], arguments[2]
  wrk.headers["Content-Type"] = "application/json"
end

function response(status, _, body)
  if status ~= 200 or body ~= wanted then wrong = wrong + 1 end
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  for _, thread in ipairs(threads) do failed = failed + thread:get "wrong" end
  print(('{"answers":%d,"errors":%d,"p50_us":%.1f,"p99_us":%.1f}'):format(summary.requests, failed, latency:percentile(50),
    latency:percentile(99)))
end
