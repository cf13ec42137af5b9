--- korv: an API over SSH. Endpoints are Lua functions; clients call them with the keys that they have.
-- @module korv
-- @usage
-- local korv = require "korv"
-- local server = assert(korv.server { host_keys = { "ssh_host_ed25519_key" }, authorized_client_keys = "authorized_keys" })
-- server:add_callback("GET", "/hello", function(request) return 200, { msg = "Hello World!" } end)
-- server:start()

if _VERSION ~= "Lua 5.4" then error("korv needs Lua 5.4, and this is " .. _VERSION .. ": start it with lua5.4", 0) end

local core = require "korv.core"
local app = require "korv.app"
local every = require "korv.every"
local log = require "korv.log"
local task = require "korv.task"

core.set_log(function(level, message) log[level]("%s", message) end)
log.context(core.request_id)

local korv = {
  --- The version of this module.
  version = require "korv.version",

  --- Makes a server; see `korv.server`.
  -- @function server
  -- @tparam table options
  server = require "korv.server",

  --- Makes a client; see `korv.client`.
  -- @function client
  -- @tparam table options
  client = require "korv.client",

  --- An app to register endpoints on, without a server; see `korv.app`.
  -- @function app
  app = app.new,

  --- Asks an app without a network, for specs; see `korv.test`.
  -- @function test
  -- @tparam string ... scripts and folders
  test = require "korv.test",

  --- Leaves an endpoint with an answer: `korv.abort(404, { message = "no such user" })`. See `korv.app.abort`.
  -- @function abort
  -- @tparam[opt=500] int code from 100 to 599
  -- @param[opt] body
  abort = app.abort,

  --- JSON, exact: `json.encode(value)` and `json.decode(text)` return nil, message, name where it cannot be done.
  json = core.json,

  --- JSON's null; the same value as `cjson.null`.
  null = core.json.null,

  --- Marks a table as a JSON array, which it stays when it is empty: `korv.array {}`.
  -- @function array
  -- @tparam[opt] table list a new one where there is none
  -- @treturn table the same
  array = core.json.array,

  --- Writes to the server's log; see `korv.log`.
  log = log,

  --- Runs a program while others are served; see `korv.exec`.
  -- @function exec
  -- @tparam {string,...} argv
  -- @tparam[opt] table options
  exec = require "korv.exec",

  --- Runs a function in a coroutine of its own; see `korv.task.spawn`.
  -- @function spawn
  -- @tparam function fn
  -- @param ...
  spawn = task.spawn,

  --- Waits for a callback; see `korv.task.await`.
  -- @function await
  -- @tparam function begin
  await = task.await,

  --- Waits some time; see `korv.task.sleep`.
  -- @function sleep
  -- @tparam number seconds
  sleep = task.sleep,

  --- Runs a function again and again, each time in a coroutine of its own, in which it may wait; never two runs at once. An error is
  -- logged, and it goes on. Called in an endpoint script it begins when the script's endpoints serve and ends when a reload has replaced
  -- them. Elsewhere it begins at once, and does not keep the loop running.
  -- @tparam number seconds between the beginnings of two runs
  -- @tparam function fn
  -- @treturn table a timer, whose `stop` method ends it
  every = function(seconds, fn)
    local timer = every.new(seconds, fn, 2)
    timer:start()
    return timer
  end,

  --- Runs the loop; see `korv.task.run`.
  -- @function run
  run = task.run,

  --- Ends the loop; see `korv.task.stop`.
  -- @function stop
  stop = task.stop,
}

return korv
