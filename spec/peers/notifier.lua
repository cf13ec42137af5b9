--- Calls functions of korv.notify: each argument is a name, or name=argument; `wait=SECONDS` runs the loop, `block=SECONDS` holds it up,
-- `print=VARIABLE` prints what a child process would see, `next=` the environment of the next server.
local notify = require "korv.notify"
local uv = require "luv"

local own = {}

function own.wait(seconds)
  local timer = uv.new_timer()
  timer:start(math.floor(seconds * 1000), 0, function() timer:close() end)
  uv.run()
end

function own.block(seconds) uv.sleep(math.floor(seconds * 1000)) end

function own.print(variable)
  local pipe = assert(io.popen("printenv " .. variable))
  print(variable .. "=" .. (pipe:read "l" or ""))
  pipe:close()
end

function own.next()
  local environment = notify.environment()
  print(("next %s %s"):format(environment.NOTIFY_SOCKET, environment.WATCHDOG_USEC))
end

for _, word in ipairs(arg) do
  local name, argument = word:match "^([%l_]+)=?(.*)$"
  local call = own[name] or notify[name]
  call(argument)
end
notify.close()
uv.run "nowait"
