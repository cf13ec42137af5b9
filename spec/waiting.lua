--- What the specs of waiting endpoints, streams, deadlines and limits share, on top of spec.pair: servers in processes of their own that
-- take any option, how large a count is, and what a server tells of itself (its endpoints are in spec/data/waiting.lua).
-- @module spec.waiting

local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local waiting = {
  --- Large counts as they are written: with KORV_FULL=1. Otherwise a twentieth.
  full = os.getenv "KORV_FULL" == "1",
  --- Whether figures of memory and time mean something: not under a checker.
  is_measured = support.patience == 1,
  MEBIBYTE = 1024 * 1024,
}

--- A large count, or a twentieth of it.
function waiting.scaled(count) return waiting.full and count or math.ceil(count / 20) end

--- Starts a server with spec/data/waiting.lua in a process of its own, and waits until it listens.
-- @tparam[opt] table options of korv.server
-- @tparam[opt] table process `before`: a command that runs it; `keys`: the names of those that are let in; `script`: another one;
--   `stderr`: as for support.start
-- @treturn Process as from support.serve
function waiting.serve(options, process)
  process = process or {}
  local all = { host = "127.0.0.1", port = 0, host_keys = { support.key "host" },
                authorized_client_keys = support.authorized_keys(table.unpack(process.keys or { "client" })) }
  for name, value in pairs(options or {}) do all[name] = value end
  local argv = table.move(process.before or {}, 1, #(process.before or {}), 1, {})
  table.move({ "lua5.4", support.root .. "/spec/peers/limited_server.lua", korv.json.encode(all),
    support.root .. "/" .. (process.script or "spec/data/waiting.lua") }, 1, 4, #argv + 1, argv)
  return support.listening(support.start(support.wrapped(argv), { stderr = process.stderr }))
end

--- Kills a server that is meant to die.
function waiting.kill(server)
  server.must_end_well = nil
  server:kill()
end

--- What a server's Lua state holds after a collection: `bytes` and `handles`, asked through a client of it.
function waiting.holdings(client)
  local response, message = client:get "/holdings"
  return response and response.body or error(message, 2)
end

--- Waits until a function's number no longer falls, and returns it.
function waiting.settled(number)
  local last = number()
  for _ = 1, 40 do
    uv.run "nowait"
    uv.sleep(25)
    local now = number()
    if now >= last then return now end
    last = now
  end
  return last
end

--- Sends requests and waits for what comes of them, items of streams and all (raw_channel's own `expect` takes whole responses only).
-- @tparam Channel channel of raw_channel
-- @int n how many messages
-- @treturn {table,...} each with the raw JSON of its fields
function waiting.fields(channel, n, timeout)
  local answer = channel:order("expect", { messages = n, timeout = timeout })
  local list = {}
  for i, message in ipairs(answer.messages) do
    list[i] = message.fields
    for name, path in pairs(message.files) do list[i][name] = support.read(path) end
  end
  if #list < n then error(("%d of %d messages came; the channel: %s"):format(#list, n, table.concat(answer.events, ", ")), 2) end
  return list
end

--- Runs a function in each of n coroutines at once and waits for all. What one raised is raised.
function waiting.together(n, fn, seconds)
  local left, problem = n, nil
  for i = 1, n do
    korv.spawn(function()
      local ok, message = pcall(fn, i)
      if not ok then problem = problem or message end
      left = left - 1
    end)
  end
  if not support.wait_for(function() return left == 0 or problem end, seconds or 10) then
    error(("%d of %d have not ended"):format(left, n), 2)
  end
  if problem then error(problem, 0) end
end

--- Seconds that a function took.
function waiting.time(fn)
  local begin = uv.hrtime()
  fn()
  return (uv.hrtime() - begin) / 1e9
end

waiting.wait_for = pair.wait_for

return waiting
