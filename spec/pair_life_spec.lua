--- A server and a client of korv's, mostly both in this process: what becomes of calls and of their errors in the life of a connection, of
-- a client and of a server.

local core = require "korv.core"
local gates = require "spec.gates"
local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local function add_endpoints(server)
  server:get("/hello", function() return 200, { msg = "Hello World!" } end)
  server:get("/wait", function() return 200, gates.wait() end)
  server:get("/peer", function(request) return 200, request.peer end)
  return server
end

describe("a server and a client", function()
  local server, client

  setup(function()
    pair.begin()
    server = pair.listen(add_endpoints(pair.new_server()))
    client = assert(pair.dial(server))
  end)
  before_each(function() pair.logged = {} end)
  teardown(pair.finish)

  describe("in the life of a connection", function()
    it("what does not listen is ECONNREFUSED", function()
      local deaf = uv.new_tcp()
      deaf:bind("127.0.0.1", 0)
      local port = deaf:getsockname().port
      local none, message, name = pair.dial { port = port, host_key = support.key "host" }
      deaf:close()
      assert.same({ nil, "ECONNREFUSED" }, { none, name })
      assert.matches("127%.0%.0%.1 port " .. port, message)
    end)

    it("what does not answer is ETIMEDOUT, and the message says at what", function()
      local silent = uv.new_tcp()
      silent:bind("127.0.0.1", 0)
      silent:listen(1, function() end)
      local none, message, name = pair.dial({ port = silent:getsockname().port, host_key = support.key "host" }, { timeout = 0.2 })
      silent:close()
      assert.same({ nil, "ETIMEDOUT" }, { none, name })
      assert.matches("within 0%.2 s, while exchanging keys", message)
    end)

    it("what speaks no SSH is an error that says so", function()
      local web = uv.new_tcp()
      web:bind("127.0.0.1", 0)
      web:listen(1, function()
        local peer = uv.new_tcp()
        web:accept(peer)
        peer:write("HTTP/1.1 400 Bad Request\r\n\r\n", function() peer:close() end)
      end)
      local port = web:getsockname().port
      local none, message = pair.dial { port = port, host_key = support.key "host" }
      web:close()
      assert.is_nil(none)
      assert.matches("SSH with 127%.0%.0%.1 port " .. port, message)
    end)

    it("a server that dies ends its calls, and those to come", function()
      local other = support.serve "spec/data/app.lua"
      local own, ended = assert(pair.dial(other)), nil
      own:get("/slow", nil, function(...) ended = table.pack(...) end)
      other.must_end_well = nil
      other:kill()
      pair.wait_for(function() return ended end)
      assert.same({ nil, "ECONNRESET" }, { ended[1], ended[3] })
      assert.matches("^GET /slow: .", ended[2])
      local response, message, name = own:get "/hello"
      assert.same({ nil, "ECONNRESET" }, { response, name })
      assert.matches("^GET /hello: .", message)
    end)

    it("close() ends calls under way and those to come, and may be called again", function()
      local own, ended = assert(pair.dial(server)), nil
      own:get("/wait", nil, function(...) ended = table.pack(...) end)
      own:close()
      pair.wait_for(function() return ended end)
      assert.same({ nil, "ECLOSED" }, { ended[1], ended[3] })
      assert.matches("^GET /wait: the client was closed", ended[2])
      assert.equal("ECLOSED", select(3, own:get "/hello"))
      own:close()
      gates.open()
    end)

    it("a client in a <close> variable is closed", function()
      local outer
      do
        local own <close> = assert(pair.dial(server))
        outer = own
      end
      assert.equal("ECLOSED", select(3, outer:get "/hello"))
    end)

    it("a stream that has ended is forgotten, and so are a client that has had one and a timer that has run", function()
      local seen, first = setmetatable({}, { __mode = "k" }), server:counters().connections
      pair.in_task(function()
        local own = assert(korv.client { host = "127.0.0.1", port = server.port, client_keys = { support.key "client" },
          known_hosts = support.known_hosts(server, "known_" .. server.port) })
        seen[own] = true
        for _, resource in ipairs { "/hello", "/nowhere" } do
          local next_item, stream = own:stream("GET", resource)
          seen[stream] = true
          while next_item(stream) do end
        end
        korv.await(function(resume)
          local timer
          timer = core.timer(function() resume(timer) end)
          seen[timer] = true
          timer:start(0.01)
        end)
      end)
      pair.wait_for(function()
        collectgarbage()
        return next(seen) == nil
      end)
      pair.wait_for(function() return server:counters().connections == first end)
    end)

    it("uv.walk goes over all handles", function()
      local kinds = {}
      uv.walk(function(handle) kinds[type(handle)] = true end)
      assert.is_true(next(kinds) ~= nil)
      assert.equal(200, client:get("/hello").code)
    end)

    it("stop() ends every connection and lets nobody in", function()
      local own = pair.listen(add_endpoints(pair.new_server()))
      local one, ended = assert(pair.dial(own)), nil
      one:get("/wait", nil, function(...) ended = table.pack(...) end)
      assert.equal(200, one:get("/hello").code)
      own:stop()
      pair.wait_for(function() return ended end)
      assert.is_nil(ended[1])
      assert.equal("ECONNREFUSED", select(3, pair.dial(own)))
      gates.open()
    end)

    it("a second server in the process is independent of the first", function()
      local own = pair.new_server { authorized_client_keys = support.key "stranger" .. ".pub" }
      own:get("/hello", function() return 200, "the second" end)
      pair.listen(own)
      assert.equal("EAUTH", select(3, pair.dial(own)))
      local other = assert(pair.dial(own, { client_keys = { support.key "stranger" } }))
      assert.equal("the second", other:get("/hello").body)
      assert.equal("Hello World!", client:get("/hello").body.msg)
      assert.equal(404, other:get("/peer").code)
      own:stop()
      assert.equal(200, client:get("/hello").code)
    end)

    it("an option that the core refuses raises, and no socket stays bound", function()
      local other = pair.new_server { max_channels = 0 }
      local function descriptors()
        local count = 0
        for _ in assert(uv.fs_scandir_next), assert(uv.fs_scandir "/proc/self/fd") do count = count + 1 end
        return count
      end
      local before = descriptors()
      pair.must_raise("korv.server: max_channels", function() other:listen() end)
      assert.equal(before, descriptors())
    end)

    it("reads its keys again after its end, and where the core refuses new ones asks for them again", function()
      local path = support.path "host_key_of_its_own"
      local function put(name) support.write("host_key_of_its_own", support.read(support.key(name))) end
      put "host"
      assert(uv.fs_chmod(path, 384))
      local other = pair.new_server { host_keys = { path } }
      local refuses, asked = true, 0
      other.core = { set_keys = function()
        asked = asked + 1
        if refuses then return nil, "no memory for keys", "ENOMEM" end
        return true
      end, expel = function() end }
      local first = other.host_keys[1].fingerprint
      put "next_host"
      other:reload_keys()
      assert.equal(first, other.host_keys[1].fingerprint)
      refuses = false
      other:reload_keys()
      other:reload_keys()
      assert.equal(2, asked)
      assert.not_equal(first, other.host_keys[1].fingerprint)
      other.core = nil
      put "host"
      other:reload_keys()
      assert.equal(first, other.host_keys[1].fingerprint)
    end)

    it("registering after listen raises", function()
      for _, late in ipairs { function() server:get("/late", print) end, function() server:use(print) end } do
        pair.must_raise("app:%a+: the app is serving already", late)
      end
    end)

    it("errors in callbacks and spawned tasks are logged and end nothing", function()
      client:get("/hello", nil, function() error "in a callback of a call" end)
      korv.spawn(function() error "in a task" end)
      local timer = uv.new_timer()
      timer:start(0, 0, function()
        timer:close()
        error "in a timer"
      end)
      for _, where in ipairs { "in a callback of a call", "in a task", "in a timer" } do
        pair.wait_for_log("error .*pair_life_spec%.lua:%d+: " .. where .. ".*stack traceback")
      end
      assert.equal(200, client:get("/hello").code)
    end)
  end)
end)
