--- The likeliest slips, and what is said to them.

local app = require "korv.app"
local pair = require "spec.pair"
local support = require "spec.support"

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

  it("a server loads scripts as the command does", function()
    local other = pair.new_server()
    assert.equal("ELOAD", select(3, other:load "no/such/script.lua"))
    assert.is_true(other:load "scripts/endpoints/hello.lua")
    assert.equal("Hello World!", assert(pair.dial(pair.listen(other))):get("/hello").body.msg)
  end)
end)
