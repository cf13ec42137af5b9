--- `korv serve`: which processes there are, and what each of them does. With one worker it is one process; with more, a supervisor that has
-- the sockets, and the same command again for each worker.
-- @module korv.serve

local core = require "korv.core"
local korv = require "korv"
local log = require "korv.log"
local service = require "korv.service"
local supervisor = require "korv.supervisor"
local uv = require "luv"
local worker = require "korv.worker"

local FAILED = 1

-- Where its sockets came from others, nobody has said here what they listen on.
local function announce(info, host, is_given, port)
  local shown = {}
  for i, key in ipairs(info.host_keys) do shown[i] = ("%s (%s)"):format(key.fingerprint, key.type) end
  local where = host or is_given and "the sockets it was given," or "all interfaces,"
  print(("korv: listening on %s port %d, host key %s"):format(where, port, table.concat(shown, ", ")))
  io.stdout:flush()
end

local function new_server(options)
  return korv.server {
    host = options.host, port = options.port,
    authorized_client_keys = #options.authorized_keys > 0 and options.authorized_keys or nil,
    host_keys = #options.host_key > 0 and options.host_key or nil,
    watch = not options.no_watch, drain = options.drain,
  }
end

-- A server that has read its keys and its scripts; or nil and a message.
local function load(options, number)
  local server, message = new_server(options)
  if not server then return nil, message end
  server.number = number or 1
  local ok
  ok, message = server:load(table.unpack(options.script))
  return ok and server, message
end

-- Some were only looked for, where the module was found elsewhere.
local function count_files(list)
  local count = 0
  for _, path in ipairs(list) do
    if uv.fs_access(path, "R") then count = count + 1 end
  end
  return count
end

local function check(options)
  local server, message = load(options)
  if not server then return FAILED, message end
  print(("korv: all well; endpoints: %d, files: %d, authorized keys: %d"):format(#server.generation.app.routes:entries(),
    count_files(server.generation.files), server.credentials:count()))
  return 0
end

local function serve_alone(options)
  local sockets, message = service.inherited()
  local server, listening
  if not message then server, message = load(options) end
  if server then listening, message = server:listen(sockets) end
  if not listening then return FAILED, message end
  server:run { drain = options.drain, announce = function() announce(server, options.host, sockets, server.port) end }
  return 0
end

local function serve_as_worker(options)
  local number, generation = tonumber(os.getenv "KORV_WORKER"), tonumber(os.getenv "KORV_GENERATION")
  local ok, message = worker.take()
  if not ok then return FAILED, message end
  log.worker(number)
  local server
  server, message = load(options, generation)
  if not server then
    worker.fail(message)
    return FAILED
  end
  ok, message = worker.run(server, {
    number = number, info = { host_keys = server.host_keys }, drain = options.drain, watch = not options.no_watch,
  })
  return ok and 0 or FAILED, message
end

local function start_workers(parent)
  local over, info, message
  parent:start(function(...)
    over, info, message = true, ...
  end)
  while not over do uv.run "once" end
  return info, message
end

local function serve_with_workers(options)
  local given, message = service.inherited()
  local sockets = given
  if not given and not message then sockets, message = core.bind(options.host, options.port or 8022) end
  if not sockets then return FAILED, message end
  local parent = supervisor.new { argv = service.argv(), sockets = sockets, workers = options.workers }
  local info
  info, message = start_workers(parent)
  if not info then return FAILED, message end
  local port = core.socket_port(sockets[1])
  service.run(parent, { drain = options.drain, announce = function() announce(info, options.host, given, port) end })
  return 0
end

--- Serves, or checks, as the command line says, and returns when that is over.
-- @tparam table options the command line's
-- @treturn int the exit status
-- @treturn ?string what to tell on stderr
local function serve(options)
  if options.log_level then log.level(options.log_level) end
  if options.log_format then log.format(options.log_format) end
  if options.check then return check(options) end
  if os.getenv "KORV_WORKER" then return serve_as_worker(options) end
  if (options.workers or 1) > 1 then return serve_with_workers(options) end
  return serve_alone(options)
end

return serve
