--- What the specs of the command share, on top of spec.support: a server with endpoints for them, how its command line is put together, and
-- what a failure looks like.
-- @module spec.commanding

local luassert = require "luassert"
local support = require "spec.support"

local commanding = {}

local ENDPOINTS = [[
local korv = require "korv"
return function(app)
  app:get("/hello", function() return 200, { msg = "Hello World!", list = korv.array { 1, korv.array {}, {} } } end)
  app:get("/login", function(request) return 200, request.peer.login end)
  app:get("/wait", function() korv.sleep(60) return 200 end)
  local waiting = "nobody waits"
  app:get("/waiting", function() return 200, waiting end)
  for resource, pause in pairs { ["/ticking"] = 0.01, ["/quiet"] = 60 } do
    app:get(resource, function(request)
      local ended <close> = setmetatable({}, { __close = function() waiting = "nobody waits" end })
      waiting = resource
      for i = 1, math.huge do
        request:send { i }
        korv.sleep(pause)
      end
    end)
  end
  app:get("/some", function(request)
    for i = 1, tonumber(request.query.n) do request:send(i) end
    korv.sleep(tonumber(request.query.sleep) or 0)
    return math.tointeger(tonumber(request.query.code or 200)), request.query.last
  end)
  app:get("/korv/endpoints", function()
    local of_user = { verb = "GET", resource = "/users/:näme", doc = "Tells of a\27[31m user,\nwhoever.\u{9b}1m\u{202e}" }
    local of_roles = { verb = "STORE", resource = "/y", doc = "Of ops", roles = { "ops", "on\ncall\27" } }
    return 200, { of_user, { verb = "DELETE", resource = "/x" }, of_roles, { verb = "GET", resource = "/z", roles = { "ops" } } }
  end)
  app:get("/odd/endpoints", function() return 200, { 1 } end)
  app:get("/none/endpoints", function() return 200, korv.array {} end)
  app:get("/barred/endpoints", function() return 403, { message = "not for you" } end)
  app:get("/code/:code", function(request)
    return math.tointeger(tonumber(request.params.code)), { code = request.params.code, said = request.query.said }
  end)
  for _, verb in ipairs { "GET", "STORE", "UPDATE", "DELETE" } do
    app:add_callback(verb, "/echo", function(request) return 200, request.body end)
  end
end
]]

--- Writes the script with the endpoints.
-- @treturn string its path
function commanding.script() return support.write("endpoints.lua", ENDPOINTS) end

--- The members of several lists in one.
-- @tparam {string,...} ...
-- @treturn {string,...}
function commanding.concat(...)
  local all = {}
  for _, list in ipairs { ... } do table.move(list, 1, #list, #all + 1, all) end
  return all
end

--- A folder in the temporary folder, and its parents.
-- @string name
-- @treturn string its path
function commanding.folder(name)
  local path = support.path(name)
  assert(support.run({ "mkdir", "-p", path }).code == 0)
  return path
end

--- The public key that a server lets in.
-- @treturn string its path
function commanding.authorized() return support.key "client" .. ".pub" end

--- The command line of `korv serve` with what is right, where the arguments do not say otherwise.
-- @string ... arguments
-- @treturn {string,...}
function commanding.serve_argv(...)
  local argv, given = { support.korv, "serve", ... }, table.concat({ ... }, " ")
  for option, value in pairs { ["--host"] = "127.0.0.1", ["--port"] = "0", ["--host-key"] = support.key "host",
    ["--authorized-keys"] = commanding.authorized() } do
    if not given:find(option .. " ", 1, true) then argv = commanding.concat(argv, { option, value }) end
  end
  return argv
end

--- Waits for the line that says it is listening.
-- @tparam Process server
-- @treturn Process it, with port, host_key, and what it said
function commanding.listening(server)
  local line = server:line() or error(server:describe "said nothing")
  server.port = tonumber(line:match "^korv: listening on .* port (%d+), host key SHA256:%S+ %(%S+%)") or error(line)
  server.host_key, server.must_end_well, server.said = support.key "host", true, line
  return server
end

--- Starts `korv serve`, and waits until it listens.
-- @string ... arguments as for serve_argv
-- @treturn Process as from listening
function commanding.serve(...) return commanding.listening(support.start(commanding.serve_argv(...))) end

--- The command line of a client's command, with the keys that are right.
-- @tparam Process server
-- @string command such as call
-- @string ... its other arguments
-- @treturn {string,...}
function commanding.argv(server, command, ...)
  return { support.korv, command, "-i", support.key "client", "--known-hosts", support.known_hosts(server),
    "127.0.0.1:" .. server.port, ... }
end

--- Fails where an ended command has not one line on stderr that has these parts, nothing on stdout, and the status.
-- @tparam Process done
-- @int status
-- @string ... parts
function commanding.assert_complains(done, status, ...)
  luassert.same({ status, 0, "" }, { done.code, done.signal, done.stdout })
  luassert.matches("^korv: [^\n]+\n$", done.stderr)
  for _, part in ipairs { ... } do luassert.is_truthy(done.stderr:find(part, 1, true), ("%q lacks %q"):format(done.stderr, part)) end
end

return commanding
