--- What systemd is told: sd_notify(3), without libsystemd. Where nobody asked to be told, every function does nothing. Knows nothing of
-- what korv serves.
-- @module korv.notify

local core = require "korv.core"
local log = require "korv.log"
local uv = require "luv"

local notify = {}

local RETRY_MS, RETRIES = 100, 100 -- where systemd is too busy to take a message now
local QUEUE = 32 -- messages that wait for that

local socket      -- nil: nobody asked
local feeding_ms  -- nil: no watchdog
local is_taken    -- the environment was read
local is_replaced -- another process is the server
local feeder, retrier
local waiting, tries = {}, 0

local function take(name)
  local value = os.getenv(name)
  if value then uv.os_unsetenv(name) end
  return value
end

--- Reads what systemd asks for and takes it out of the environment, so that no child process takes it for its own. The other functions
-- begin with it.
function notify.take()
  if is_taken then return end
  is_taken = true
  socket = take "NOTIFY_SOCKET"
  local pid, usec = take "WATCHDOG_PID", math.tointeger(tonumber(take "WATCHDOG_USEC"))
  local ours = not pid or tonumber(pid) == uv.os_getpid()
  if socket and ours and usec and usec > 0 then feeding_ms = math.max(usec // 2000, 1) end
end

--- What the next server needs in its environment, to take this one's place.
-- @treturn {[string]=string,...}
function notify.environment()
  notify.take()
  return { NOTIFY_SOCKET = socket, WATCHDOG_USEC = feeding_ms and ("%d"):format(feeding_ms * 2000) }
end

local function give_up(message)
  log.warn("systemd cannot be told how the server does: %s: %s", socket, message)
  waiting = {}
end

-- True: it is settled, one way or the other.
local function try(text)
  local ok, message, name = core.notify(socket, text)
  if ok then return true end
  tries = tries + 1
  if name == "EAGAIN" and tries <= RETRIES and #waiting <= QUEUE then return false end
  give_up(message)
  return true
end

local function stop_retrying()
  if retrier then retrier:close() end
  retrier = nil
end

local function flush()
  while waiting[1] and try(waiting[1]) do
    table.remove(waiting, 1)
    tries = 0
  end
  if not waiting[1] then stop_retrying() end
end

local function send(text)
  notify.take()
  if not socket or is_replaced then return end
  waiting[#waiting + 1] = text
  flush()
  if waiting[1] and not retrier then
    retrier = uv.new_timer()
    retrier:start(RETRY_MS, RETRY_MS, flush)
    retrier:unref()
  end
end

-- A loop that stands still feeds nobody.
local function feed()
  if not feeding_ms or feeder or is_replaced then return end
  feeder = uv.new_timer()
  feeder:start(0, feeding_ms, function() send "WATCHDOG=1" end)
  feeder:unref()
end

local function stop_feeding()
  if feeder then feeder:close() end
  feeder = nil
end

--- The server serves; or: a reload has ended. From the first call on the watchdog is fed.
function notify.ready()
  send "READY=1"
  feed()
end

--- A reload begins.
function notify.reloading() send(("RELOADING=1\nMONOTONIC_USEC=%d"):format(uv.hrtime() // 1000)) end

--- The server is about to end.
function notify.stopping() send "STOPPING=1" end

--- What `systemctl status` shows.
-- @tparam string text
function notify.status(text) send("STATUS=" .. text:gsub("%c", " ")) end

--- Another process is the server from now on. This one says nothing more.
-- @tparam int pid
function notify.main_pid(pid)
  send(("MAINPID=%d\nWATCHDOG=1"):format(pid)) -- fed: what the next process said may have come before it was listened to
  stop_feeding()
  is_replaced = true
end

--- Lets go of the timers. The loop has to turn once more after it.
function notify.close()
  stop_feeding()
  stop_retrying()
  waiting = {}
end

return notify
