--- The likeliest slips, and what is said to them.

local app = require "korv.app"
local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"

-- One of spec/peers, which is told by lines on its stdin what to do, if anything.
local function python_server(name)
  local other = support.start({ support.python, ("%s/spec/peers/%s.py"):format(support.root, name), "--host-key", support.key "host",
    "--authorized-keys", support.authorized_keys "client" }, { stdin = true })
  other.port = tonumber(other:line():match "^port (%d+)$")
  other.host_key = support.key "host"
  return other
end

describe("a slip", function()
  local server, client

  setup(function()
    pair.begin()
    server = pair.new_server()
    server:get("/error", function() error "boom" end)
    server = pair.listen(server)
    client = assert(pair.dial(server))
  end)

  teardown(pair.finish)

  for what, slip in pairs {
    ["app:post: the verbs are get, store, update and delete; try app:store"] = function() app.new():post("/x", print) end,
    ["client:put: the verbs are .* try client:update"] = function() client:put("/x", 1) end,
    ["client:get: the callback is the third argument"] = function() client:get("/x", print) end,
    ["korv.exec: argument 2 must be a string, not a nil"] = function() korv.exec { "echo", nil, "x" } end,
    ["korv.exec: argument 3 must be a string, not a table"] = function() korv.exec { "echo", 1, {} } end,
    ["korv.exec: env must be a table of names to strings, .*got 1 = A=B"] = function() korv.exec({ "env" }, { env = { "A=B" } }) end,
    ["korv.exec: env must be .*got A = table"] = function() korv.exec({ "env" }, { env = { A = {} } }) end,
    ["client:stream: the callback is the fourth argument, behind the body"] = function() client:stream("GET", "/x", print) end,
    ["call it with a colon: client:call"] = function() client.call("GET", "/x") end,
    ["call it with a colon: client:stream"] = function() client.stream("GET", "/x") end,
    ["korv.await: its argument is a function, .*got a nil"] = function() korv.await() end,
    ["call it with a colon: server:get"] = function() server.get("/x", print) end,
    ["GET /x: the endpoint, the last argument, must be a function"] = function() pair.new_server():get "/x" end,
    ["call it with a colon: client:get"] = function() client.get("/x") end,
  } do
    it("is told: " .. what, function() pair.must_raise(what, slip) end)
  end

  it("in an endpoint is in the server's log, with its traceback", function()
    assert.equal(500, client:get("/error").code)
    pair.wait_for_log "error an endpoint failed: .*boom.*traceback"
  end)

  it("a public key in place of the private one is named", function()
    local none, message, name = pair.dial(server, { client_keys = { support.key "client" .. ".pub" } })
    assert.same({ nil, "EKEY" }, { none, name })
    assert.matches("this is a public key", message)
  end)

  it("a program that does not exist, or a folder, is named, and the end of the program is a good one", function()
    local done = pair.program([[
      print((select(2, korv.exec { "no-such-program" })))
      print((select(2, korv.exec({ "pwd" }, { cwd = "/no-such-folder" }))))]], {})
    assert.same({ 0, 0, "" }, { done.code, done.signal, done.stderr })
    assert.matches("^no%-such%-program: ENOENT.*\npwd: its folder /no%-such%-folder does not exist\n$", done.stdout)
  end)

  it("a zero byte among what a program is given is told, and cuts nothing off", function()
    for what, call in pairs {
      ["touch: argument 2"] = { { "touch", support.path "a\0b" } }, ["pwd: a variable of env"] = { { "pwd" }, { env = { A = "a\0b" } } },
      ["pwd: cwd"] = { { "pwd" }, { cwd = "/\0b" } }, ["pw\\0d: argument 1"] = { { "pw\0d" } },
    } do
      assert.same({ nil, what .. " has a zero byte in it, which no program can be given", "EINVAL" }, { korv.exec(table.unpack(call)) })
    end
    assert.is_nil(support.read(support.path "a"))
    assert.equal("5 7\n", korv.exec { "echo", 5, "7" }.stdout)
  end)

  it("a server loads scripts as the command does", function()
    local other = pair.new_server()
    assert.equal("ELOAD", select(3, other:load "no/such/script.lua"))
    assert.is_true(other:load "scripts/endpoints/hello.lua")
    assert.equal("Hello World!", assert(pair.dial(pair.listen(other))):get("/hello").body.msg)
  end)

  it("an error whose __tostring raises costs nobody else anything", function()
    local bad = setmetatable({}, { __tostring = function() error "no text" end })
    korv.spawn(function() error(bad) end)
    pair.wait_for_log "error in korv%.spawn: an error whose __tostring fails"
    local own = pair.new_server()
    own:get("/closing", function()
      local closing <close> = setmetatable({}, { __close = function() error(bad) end }) -- luacheck: ignore 211
      korv.sleep(10)
    end)
    own:get("/hello", function() return 200 end)
    local caller = assert(pair.dial(pair.listen(own)))
    assert.equal(504, assert(caller:call("GET", "/closing", nil, { timeout = 0.1 }) or { code = 504 }).code)
    pair.wait_for_log "to%-be%-closed variable of a cancelled endpoint: an error whose __tostring fails"
    assert.equal(200, caller:get("/hello").code)
  end)

  it("in a finalizer that runs when korv has gone is an error there, and the end of the program is a good one", function()
    local path = support.write("late.lua", [[
      local core
      local unasked = { log_write = true, make_key = true } -- which make a line and a file
      local function try(name, ...)
        local ok, problem = pcall(core[name], ...)
        return not ok and problem:find "the program is ending" and name
      end
      local late = setmetatable({}, { __gc = function() -- made before korv, so it goes after it
        for name, value in pairs(core) do
          if type(value) == "function" and not unasked[name] then print(try(name, 1) or try(name, print) or try(name, {}) or "-") end
        end
      end })
      core = require "korv.core"
      core.late = late]])
    local done = support.run({ "lua5.4", path }, { env = { LUA_PATH = package.path, LUA_CPATH = package.cpath } })
    assert.same({ 0, 0, "" }, { done.code, done.signal, done.stderr })
    for _, name in ipairs { "sleep", "spawn", "timer", "ticket", "here", "cpu_limit" } do
      assert.truthy(("\n" .. done.stdout):find("\n" .. name .. "\n", 1, true), name)
    end
  end)

  it("a port that is taken leaves nothing behind, whoever tries again and again", function()
    for _ = 1, 5 do
      local own = pair.new_server { port = server.port }
      assert.equal("EADDRINUSE", select(3, own:listen()))
    end
    for _ = 1, 3 do collectgarbage() end
    assert.equal(500, client:get("/error").code)
  end)

  it("of a server that opens a channel and refuses its subsystem costs the client that stream alone", function()
    local own = assert(pair.dial(python_server "refusing"))
    for _ = 1, 3 do
      for item, problem in own:stream("GET", "/x") do
        assert.same({ false, "GET /x: the server refused a further channel (its max_channels?)" }, { item, problem })
      end
    end
    pair.in_task(function() korv.sleep(0.2) end) -- its closes come behind
    assert.equal(200, own:get("/x").code)
  end)

  it("of a server that opens a channel to its client has an answer", function()
    local own = assert(pair.dial(python_server "refusing"))
    assert.equal("refused", own:get("/back").body)
  end)

  it("of a server that closes a channel, reads nothing more and goes away costs the client one end of that channel, not two", function()
    local other = python_server "stalling"
    local own = assert(pair.dial(other))
    local ends, calls, turns = {}, 0, 0
    local channel = own.transport:channel(function() end, function(name) ends[#ends + 1] = name end)
    assert.is_true(channel:send { id = 1, verb = "GET", resource = "/x" })
    assert.equal("stalled", other:line())
    for _ = 1, 40 do own:call("STORE", "/x", ("x"):rep(1 << 20), { callback = function() calls = calls + 1 end }) end
    pair.wait_for(function() -- the socket is full by then, so that the client cannot close the channel in its turn
      turns = turns + 1
      return turns > 60
    end)
    other:write "close\n"
    pair.wait_for(function() return ends[1] end)
    other:write "end\n"
    pair.wait_for(function() return calls == 40 end)
    assert.same({ "ECONNRESET" }, ends)
  end)
end)
