--- korv: an API over SSH. Endpoints are Lua functions; clients call them with the keys that they have.
-- @module korv
-- @usage
-- local korv = require "korv"
-- local server = assert(korv.server { host_keys = { "ssh_host_ed25519_key" }, authorized_client_keys = "authorized_keys" })
-- server:add_callback("GET", "/hello", function(request) return 200, { msg = "Hello World!" } end)
-- server:start()

local core = require "korv.core"
local app = require "korv.app"
local log = require "korv.log"
local task = require "korv.task"

core.set_log(function(level, message) log[level]("%s", message) end)

local korv = {
  --- The version of this module.
  version = "0.3.0",

  --- Makes a server; see `korv.server`.
  server = require "korv.server",

  --- Makes a client; see `korv.client`.
  client = require "korv.client",

  --- An app to register endpoints on, without a server; see `korv.app`.
  app = app.new,

  --- Leaves an endpoint with an answer: `korv.abort(404, { message = "no such user" })`. See `korv.app.abort`.
  abort = app.abort,

  --- JSON, exact: `json.encode(value)` and `json.decode(text)` return nil, message, name where it cannot be done.
  json = core.json,

  --- JSON's null; the same value as `cjson.null`.
  null = core.json.null,

  --- Marks a table as a JSON array, which it stays when it is empty: `korv.array {}`.
  array = core.json.array,

  --- Writes to the server's log; see `korv.log`.
  log = log,

  spawn = task.spawn,
  await = task.await,
  sleep = task.sleep,
  run = task.run,
  stop = task.stop,
}

return korv
