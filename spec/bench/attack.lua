#!/usr/bin/env lua5.4
--- Attacks a server at a steady rate, until it is killed: `attack.lua messages|handshakes PORT RATE KEY`, so many a second. Messages that
-- are none go over one OpenSSH client, handshakes that are none over a connection each. For scripts/bench; prints a line once it is under
-- way.
local root = arg[0]:match "^(.*)/spec/bench/[^/]*$" or "."
package.path = root .. "/?.lua;" .. package.path

local malformed = require "spec.malformed"
local uv = require "luv"

local TICKS = 100 -- a second
local kind, port, rate, key = arg[1], tonumber(arg[2]), tonumber(arg[3]), arg[4]

local function prepared(count, make)
  local list = {}
  for i = 1, count do list[i] = make() end
  return list
end

-- Calls act so often that it is the rate, whatever the timer does.
local function steadily(act)
  local began, done = uv.hrtime(), 0
  local timer = uv.new_timer()
  timer:start(0, 1000 // TICKS, function()
    local due = (uv.hrtime() - began) * 1e-9 * rate // 1
    act(math.min(due - done, rate) // 1)
    done = due
  end)
end

local function messages()
  local lines, at = prepared(20000, malformed.line), 0
  local stdin, stdout = uv.new_pipe(false), uv.new_pipe(false)
  uv.spawn("setpriv", { args = { "--pdeathsig", "KILL", "ssh", "-F", "none", "-i", key, "-p", tostring(port), "-o", "IdentitiesOnly=yes",
    "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-s", "127.0.0.1", "korv" },
    stdio = { stdin, stdout, 2 } }, function() os.exit(1) end)
  stdout:read_start(function() end)
  steadily(function(count)
    if stdin:get_write_queue_size() > 1 << 20 then return end -- it takes no more
    local from = at + 1
    at = from + math.tointeger(count) - 1
    if at > #lines then from, at = 1, math.min(math.tointeger(count), #lines) end
    if at >= from then stdin:write(table.concat(lines, "", from, at)) end
  end)
end

local function handshake(bytes)
  local socket, timer = uv.new_tcp(), uv.new_timer()
  local function close()
    if timer:is_closing() then return end
    timer:close()
    socket:close()
  end
  timer:start(100, 0, close)
  socket:bind("127.0.0.2", 0) -- not where the callers are: each address has a limit of those who have not logged in
  socket:connect("127.0.0.1", port, function(problem)
    if problem then return close() end
    socket:read_start(function(wrong, data) if wrong or not data then close() end end)
    socket:write(bytes)
  end)
end

local function handshakes()
  local recorded = {}
  for name in uv.fs_scandir_next, assert(uv.fs_scandir(root .. "/spec/corpus/handshake")) do
    local file = assert(io.open(root .. "/spec/corpus/handshake/" .. name, "rb"))
    recorded[#recorded + 1] = file:read "a"
    file:close()
  end
  steadily(function(count)
    for _ = 1, count do handshake(malformed.handshake(recorded)) end
  end)
end

({ messages = messages, handshakes = handshakes })[kind]()
print "attacking"
io.stdout:flush()
uv.run()
