--- The harness of the specs that run servers and clients of korv's in this process, and programs that use korv: on top of spec/support.
--
-- A spec file calls pair.begin in its setup and pair.finish in its teardown, which closes what it opened and ends with support.finish.
-- @module spec.pair

local korv = require "korv"
local support = require "spec.support"
local uv = require "luv"

local pair = {
  --- The lines of the log since they were last taken away.
  logged = {},
}

local opened = {} -- servers and clients

local function with(options, more)
  for name, value in pairs(more or {}) do options[name] = value end
  return options
end

--- Gathers the log.
function pair.begin()
  korv.log.format "text"
  korv.log.sink(function(line) pair.logged[#pair.logged + 1] = line end)
end

--- Closes everything, and has the loop run until all of it has gone.
function pair.finish()
  for _, one in ipairs(opened) do (one.close or one.stop)(one) end
  opened = {}
  for _ = 1, 100 do
    if not uv.run "nowait" then break end
    uv.sleep(1)
  end
  korv.log.sink(nil)
  korv.log.format "auto"
  support.finish()
end

--- A server that lets the key "client" in; it does not listen yet.
-- @tparam[opt] table options
function pair.new_server(options)
  return assert(korv.server(with({ host = "127.0.0.1", port = 0, host_keys = { support.key "host" },
    authorized_client_keys = support.key "client" .. ".pub" }, options)))
end

--- Has a server listen.
-- @return it, with what spec.support wants of a server: port, host_key
function pair.listen(server)
  opened[#opened + 1] = assert(server:listen())
  server.host_key = server.options.host_keys[1]
  return server
end

--- A client of a server, logged in with the key "client"; or what korv.client returned.
-- @tparam table server
-- @tparam[opt] table options
function pair.dial(server, options)
  local client, message, name = korv.client(with({ host = "127.0.0.1", port = server.port, client_keys = { support.key "client" },
    known_hosts = support.known_hosts(server, "known_" .. server.port), timeout = 10 * support.patience }, options))
  opened[#opened + 1] = client
  return client, message, name
end

--- Waits, running the loop, until done(); an error where that does not come.
-- @tparam function done
-- @tparam[opt] function what returns what the error says
function pair.wait_for(done, what)
  if not support.wait_for(done, 10) then error(what and what() or "it took too long", 2) end
end

--- Waits for a line of the log.
-- @string pattern
function pair.wait_for_log(pattern)
  pair.wait_for(function()
    for _, line in ipairs(pair.logged) do
      if line:find(pattern) then return true end
    end
  end, function() return ("the log has no %q:\n%s"):format(pattern, table.concat(pair.logged, "\n")) end)
end

--- Calls a function in a coroutine of korv's and returns what it returned, or raises what it raised.
-- @tparam function fn
function pair.in_task(fn)
  local results
  korv.spawn(function() results = table.pack(pcall(fn)) end)
  pair.wait_for(function() return results end)
  if not results[1] then error(results[2], 0) end
  return table.unpack(results, 2, results.n)
end

--- Calls a function from a callback of luv's and returns as pcall does.
-- @tparam function fn
function pair.in_luv_callback(fn)
  local results
  local timer = uv.new_timer()
  timer:start(0, 0, function()
    timer:close()
    results = table.pack(pcall(fn))
  end)
  pair.wait_for(function() return results end)
  return table.unpack(results, 1, results.n)
end

--- An error where the function does not raise a message that begins with a place in a spec file and then matches.
-- @string pattern
-- @tparam function fn
function pair.must_raise(pattern, fn)
  local ok, message = pcall(fn)
  if ok then error("nothing was raised", 2) end
  if not tostring(message):find("_spec%.lua:%d+: " .. pattern) then
    error(("what was raised does not name this file or does not match %q: %s"):format(pattern, message), 2)
  end
end

--- An error where a GET is not answered with a 500 whose message matches each pattern.
-- @tparam Client client
-- @string resource
-- @string ... patterns
-- @treturn table the answer's body
function pair.must_fail(client, resource, ...)
  local response, why = client:get(resource)
  if not response or response.code ~= 500 then error(("GET %s: %s, no 500"):format(resource, response and response.code or why), 2) end
  for _, pattern in ipairs { ... } do
    if not response.body.message:find(pattern) then
      error(("GET %s does not fail with %q: %s"):format(resource, pattern, response.body.message), 2)
    end
  end
  return response.body
end

--- A text as a pattern that matches it alone.
function pair.literal(text) return (text:gsub("%p", "%%%0")) end

--- Makes a key with ssh-keygen.
-- @string name
-- @string ... its options
-- @treturn string its path
function pair.make_key(name, ...)
  local path = support.path(name)
  local made = support.run { "ssh-keygen", "-q", "-C", name, "-f", path, ... }
  if made.code ~= 0 then error(made:describe "failed", 2) end
  return path
end

--- Runs a Lua program to its end. It has korv and luv as `korv` and `uv`, from where this process has them.
-- @string text
-- @tparam[opt] {string,...} arguments
-- @tparam[opt] table options `before`: what runs the interpreter, such as valgrind; `env`
-- @treturn Process ended
function pair.program(text, arguments, options)
  options = options or {}
  local path = support.write("program.lua", 'local korv, uv = require "korv", require "luv"\n' .. text)
  local argv = table.move(options.before or {}, 1, #(options.before or {}), 1, {})
  table.move({ "lua5.4", path, table.unpack(arguments or {}) }, 1, 2 + #(arguments or {}), #argv + 1, argv)
  return support.run(argv, { env = with({ LUA_PATH = package.path, LUA_CPATH = package.cpath }, options.env) })
end

return pair
