--- A server that goes without memory for a moment, wherever that is on the way of a request: it costs that request's connection at
-- most, and nobody waits for an answer that does not come. The server is a process into which spec/c/fail_allocations.c is preloaded.

local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local PRELOADED = support.root .. "/build/spec/c/libfail_allocations.so"
local FAILING = 4     -- Lua collects its garbage and asks once more
local ALLOCATIONS = 5 -- at least, of a request, before its endpoint runs

local SCRIPT = [[
local korv = require "korv"
return function(app)
  app:get("/hello", function() return 200 end)
  app:store("/waits", function(request) korv.sleep(0.001) return 200, request.body end)
  app:get("/waits", function() korv.sleep(0.001) return 200 end)
  app:get("/items", function(request)
    for i = 1, 3 do
      request:send { i, "unheard of" }
      korv.sleep(0.001)
    end
  end)
end
]]

local server, file, path

-- The n-th of what Lua allocates from now on fails, and some more.
local function fail_at(n) file:seek "set" file:write(string.pack("=I4I4", n, FAILING)) file:flush() end

local function has_failed()
  file:seek "set"
  return string.unpack("=I4", file:read(4)) == 0
end

local function dial() return assert(pair.dial(server)) end

describe("a server without memory", function()
  setup(function()
    assert(uv.fs_stat(PRELOADED), PRELOADED .. " is not built")
    pair.begin()
    path = support.write("failing", ("\0"):rep(8))
    file = assert(io.open(path, "r+b"))
    server = support.listening(support.start({ support.korv, "serve", "--host", "127.0.0.1", "--port", "0", "--no-watch", "--host-key",
      support.key "host", "--authorized-keys", support.authorized_keys "client", support.write("app.lua", SCRIPT) },
      { env = { LD_PRELOAD = PRELOADED, FAIL_ALLOCATIONS = path } }))
  end)
  teardown(function()
    file:close()
    pair.finish()
  end)

  it("answers a request or ends its connection, and serves the others", function()
    local other, lost = dial(), 0
    for n = 1, 4 * ALLOCATIONS do
      local one = dial()
      assert.equal(200, one:get("/hello").code)
      fail_at(n)
      local answer, message, name = one:call("STORE", "/waits", { list = { 1, {} } }, { timeout = 5 })
      local failed = has_failed()
      fail_at(0)
      if not answer then
        lost = lost + 1
        assert.are_not.equal("ETIMEDOUT", name, message)
        assert.is_true(failed)
      end
      assert.equal(200, other:get("/hello").code)
      one:close()
    end
    assert.is_true(lost >= ALLOCATIONS, lost)
  end)

  it("ends a command, whatever it was about to print, and serves the others", function()
    local done = support.run({ support.python, support.root .. "/spec/peers/rude.py", tostring(server.port), "no_memory",
      support.key "client", path, "60" }, { env = { RUDE_PATIENCE = 3 }, timeout = 60 })
    assert.equal(0, done.code, done:describe "failed")
    assert.same({ ended = 60, stuck = {} }, korv.json.decode(done.stdout))
  end)
end)
