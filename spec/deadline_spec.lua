--- How a request ends before it is done: deadlines and cancelling, what runs then and what does not any more.

local korv = require "korv"
local pair = require "spec.pair"
local raw_channel = require "spec.peers.raw_channel"
local support = require "spec.support"
local uv = require "luv"
local waiting = require "spec.waiting"

local noted -- what endpoints did, by name: how often
local kept  -- what an endpoint left for the spec

local function note(name) noted[name] = (noted[name] or 0) + 1 end

local function on_close(name)
  return setmetatable({}, { __close = function() note(name) end })
end

local function seen(name)
  pair.wait_for(function() return noted[name] end, function() return ("%s did not happen"):format(name) end)
  return noted[name]
end

local function text(id, resource, more) return ('{"id":%s,"verb":"GET","resource":"%s"%s}'):format(id, resource, more or "") end

local inner -- a client of the server's own, for endpoints to use

local WAITS = { -- endpoints that wait in every way that there is
  sleep = function() korv.sleep(60) end,
  yield = function() while true do korv.sleep(0) end end,
  await = function() korv.await(function() return function() note "await's cancel function" end end) end,
  call = function() inner:get "/inner" end,
  stream = function() for _ in inner:stream("GET", "/inner") do note "an item" end end,
  exec = function() korv.exec { "sleep", "60" } end,
  pcall = function() pcall(pcall, korv.sleep, 60) note "went on" end,
  iterator = function() for _ in function() korv.sleep(60) return 1 end do note "went on" end end,
  metamethod = function()
    local lazy = setmetatable({}, { __index = function() korv.sleep(60) end })
    return 200, lazy.field
  end,
}

local function add_endpoints(server)
  server:get("/hello", function() return 200, "hello" end)
  for name, wait in pairs(WAITS) do
    server:get("/wait/" .. name, function()
      local closing <close> = on_close "closed" -- luacheck: ignore
      wait()
      note "went on"
      return 200
    end)
  end
  server:get("/inner", function()
    local closing <close> = on_close "inner closed" -- luacheck: ignore
    korv.sleep(60)
  end)
  server:get("/pause", function()
    korv.sleep(0.02)
    return 200
  end)
  server:get("/bounded", { timeout = 0.1 }, function(request)
    korv.sleep(request.body)
    return 200
  end)
  server:get("/timeout", function(request) return 200, request.timeout end)
  server:get("/relay", function(request)
    korv.sleep(0.1)
    return 200, inner:get("/timeout").body, request
  end)
  server:get("/relay-bounded", { timeout = 5 }, function() return 200, inner:get("/timeout").body end)
  server:get("/quick-call", function()
    local response, message, name = inner:call("GET", "/inner", nil, { timeout = 0.05 })
    return 200, { response == nil, message, name }
  end)
  server:get("/late-resume", function()
    korv.await(function(resume) kept = resume end)
    note "went on"
    return 200
  end)
  server:get("/resume-twice", function()
    local first = korv.await(function(resume)
      resume "one"
      resume "two"
      kept = resume
    end)
    kept "three"
    return 200, { first, (korv.await(function(resume) korv.spawn(function() kept "four" resume "five" end) end)) }
  end)
  server:get("/await-values", function()
    return 200, { korv.await(function(resume)
      local timer = uv.new_timer()
      timer:start(1, 0, function()
        timer:close()
        resume(1, "two", false)
      end)
    end) }
  end)
  server:get("/nested-await", function()
    local closing <close> = on_close "closed" -- luacheck: ignore
    return 200, (korv.await(function(resume)
      korv.sleep(0.01)
      korv.spawn(resume, "nested")
    end))
  end)
  server:get("/close-order", function()
    kept = {}
    local function append(name) return setmetatable({}, { __close = function() kept[#kept + 1] = name end }) end
    local first <close> = append "first" -- luacheck: ignore
    pcall(function()
      local second <close> = append "second" -- luacheck: ignore
      local broken <close> = setmetatable({}, { __close = function() error "in __close" end }) -- luacheck: ignore
      local third <close> = append "third" -- luacheck: ignore
      korv.sleep(60)
    end)
  end)
  server:get("/close-waits", function()
    local last <close> = on_close "last" -- luacheck: ignore
    local waits <close> = setmetatable({}, { __close = function() -- luacheck: ignore
      kept = table.pack(pcall(korv.sleep, 1))
    end })
    korv.sleep(60)
  end)
  server:get("/ready", function()
    local closing <close> = on_close "closed" -- luacheck: ignore
    korv.await(function(resume) kept = resume end)
    note "went on"
    return 200
  end)
  server:get("/wake", function()
    kept()
    return 200
  end)
  server:get("/own-coroutine", function()
    local step = coroutine.wrap(function()
      local inside <close> = on_close "inside" -- luacheck: ignore
      coroutine.yield()
    end)
    step()
    local outside <close> = on_close "closed" -- luacheck: ignore
    korv.sleep(60)
  end)
  return server
end

describe("a request that is given up", function()
  local server, client

  setup(function()
    pair.begin()
    server = pair.listen(add_endpoints(pair.new_server()))
    client, inner = assert(pair.dial(server)), assert(pair.dial(server))
  end)
  before_each(function() noted, kept = {}, nil end)
  teardown(function()
    inner = nil
    pair.finish()
  end)

  for _, pairing in ipairs(raw_channel.pairings) do
    describe("over " .. pairing.name, function()
      local peer, channel

      setup(function() peer = assert(raw_channel.connect(server)) end)
      before_each(function() channel = peer:open_as(pairing) end)
      after_each(function() channel:close() end)

      it("by the timeout that it carries is a 504, and its endpoint is closed", function()
        local response = channel:ask(text(1, "/wait/sleep", ',"timeout":0.05'))
        assert.same({ 504, "1" }, { response.code, response.request_id })
        assert.equal("Timed out after 0.05 s", raw_channel.value(response).message)
        assert.same({ closed = 1 }, noted)
      end)

      it("not by a timeout that it keeps", function()
        assert.equal(200, channel:ask(text(1, "/hello", ',"timeout":0.05')).code)
        for _, timeout in ipairs { "1", "3600", "1e9", "1e18", "1e300" } do
          assert.equal(200, channel:ask(text(1, "/pause", ',"timeout":' .. timeout)).code, timeout)
        end
      end)

      it("refuses a timeout that is no positive number", function()
        for _, timeout in ipairs { "0", "-1", '"1"', "null", "true", "[]", "-0.0", "1e-400" } do
          local response = channel:ask(text(1, "/hello", ',"timeout":' .. timeout))
          assert.same({ 400, "1" }, { response.code, response.request_id })
          assert.matches("timeout", raw_channel.value(response).detail)
        end
      end)

      it("by a cancel message is a 499, and the message itself is not answered", function()
        channel:request(text(7, "/wait/sleep"), text(8, "/wait/sleep"), '{"cancel":7}', text(9, "/hello"))
        local codes = {}
        for _, response in ipairs(channel:expect(2)) do codes[response.request_id] = response.code end
        assert.same({ ["7"] = 499, ["9"] = 200 }, codes)
        channel:request '{"cancel":8}'
        local responses = channel:finish()
        assert.same({ 1, "8", 499 }, { #responses, responses[1].request_id, responses[1].code })
        assert.same({ closed = 2 }, noted)
      end)

      it("is all of that id on that channel, and of no other", function()
        local other = peer:open_as(pairing)
        other:request(text(7, "/wait/sleep"))
        channel:request(text(7, "/wait/sleep"), text(7, "/wait/await"), text("7.0", "/wait/sleep"), text('"7"', "/wait/sleep"),
          '{"cancel":7}')
        for _, response in ipairs(channel:expect(2)) do assert.same({ "7", 499 }, { response.request_id, response.code }) end
        assert.equal(200, channel:ask(text(1, "/hello")).code)
        channel:request('{"cancel":7.0}', '{"cancel":"7"}')
        assert.equal(2, #channel:finish())
        assert.equal(4, noted.closed)
        other:request '{"cancel":7}'
        assert.equal(499, other:finish()[1].code)
      end)

      it("ignores a cancel of what is unknown, done, or no id", function()
        channel:ask(text(1, "/hello"))
        channel:request('{"cancel":1}', '{"cancel":99}', '{"cancel":null}', '{"cancel":{}}', '{"cancel":"' .. ("x"):rep(300) .. '"}')
        assert.equal(200, channel:ask(text(2, "/hello")).code)
        assert.equal(0, #channel:finish())
      end)

      it("takes a message with a verb for a request, whatever else it has", function()
        assert.equal(200, channel:ask(text(1, "/hello", ',"cancel":1')).code)
      end)

      it("by EOF it is not: what is under way is answered", function()
        channel:request(text(1, "/bounded", ',"body":0.05'))
        assert.equal(200, channel:finish()[1].code)
      end)

      for name in pairs(WAITS) do
        it("by closing the channel while it waits in " .. name, function()
          local own = peer:open_as(pairing)
          own:request(text(1, "/wait/" .. name))
          assert.equal(200, channel:ask(text(1, "/hello")).code)
          own:close()
          assert.equal(1, seen "closed")
          assert.is_nil(noted["went on"])
        end)
      end
    end)
  end

  for name in pairs(WAITS) do
    it("by losing the connection while it waits in " .. name, function()
      local peer = assert(raw_channel.connect(server))
      local channel = peer:open "subsystem:korv"
      channel:request(text(1, "/wait/" .. name))
      channel:ask(text(2, "/hello"))
      peer.process:kill()
      assert.equal(1, seen "closed")
      assert.is_nil(noted["went on"])
    end)

    it("by its deadline while it waits in " .. name, function()
      local response, _, code = client:call("GET", "/wait/" .. name, nil, { timeout = 0.1 })
      assert.is_true(response == nil and code == "ETIMEDOUT" or response.code == 504)
      assert.equal(1, seen "closed")
      assert.is_nil(noted["went on"])
    end)
  end

  describe("by a deadline", function()
    it("of its endpoint", function()
      assert.equal(504, client:get("/bounded", 60).code)
      assert.equal("Timed out after 0.1 s", client:get("/bounded", 60).body.message)
      assert.equal(200, client:get("/bounded", 0.01).code)
    end)

    it("of its server", function()
      local own = assert(pair.dial(pair.listen(add_endpoints(pair.new_server { timeout = 0.1 }))))
      assert.same({ 504, "Timed out after 0.1 s" }, { own:get("/wait/sleep").code, own:get("/wait/sleep").body.message })
      assert.equal(200, own:get("/hello").code)
    end)

    for expected, given in pairs {
      ["0.05 s, the request's"] = { request = 0.05, endpoint = 60, server = 30 },
      ["0.06 s, the endpoint's"] = { request = 30, endpoint = 0.06, server = 60 },
      ["0.07 s, the server's"] = { request = 60, endpoint = 30, server = 0.07 },
    } do
      it("that is the earliest: " .. expected, function()
        local own = pair.new_server { timeout = given.server }
        own:get("/x", { timeout = given.endpoint }, function() korv.sleep(10) end)
        local channel = assert(raw_channel.connect(pair.listen(own))):open "subsystem:korv"
        local response = channel:ask(text(1, "/x", ',"timeout":' .. given.request))
        assert.equal(504, response.code)
        assert.equal("Timed out after " .. expected:match "^[%d.]+ s", raw_channel.value(response).message)
      end)
    end

    it("of the endpoint includes its middleware", function()
      local own = pair.new_server()
      own:use(function(request, next)
        korv.sleep(10)
        return next(request)
      end)
      own:get("/x", { timeout = 0.05 }, function() return 200 end)
      assert.equal(504, assert(pair.dial(pair.listen(own))):get("/x").code)
    end)

    it("that our client sends: what is left of its own", function()
      local sent = client:call("GET", "/timeout", nil, { timeout = 5 }).body
      assert.is_true(sent > 4.5 and sent <= 5, tostring(sent))
      assert.near(10 * support.patience, client:get("/timeout").body, 0.5)
    end)

    it("that a client in an endpoint sends: what is left of the endpoint's", function()
      local sent = client:call("GET", "/relay", nil, { timeout = 5 }).body
      assert.is_true(sent > 4 and sent <= 4.9, tostring(sent))
      sent = client:get("/relay-bounded").body
      assert.is_true(sent > 4.5 and sent <= 5, tostring(sent))
    end)

    it("of a call in an endpoint ends the call alone, where that is shorter", function()
      assert.same({ true, "GET /inner: no answer within 0.05 s", "ETIMEDOUT" }, client:get("/quick-call").body)
      assert.equal(1, seen "inner closed")
    end)

    it("of our client tells the server, which closes the endpoint", function()
      assert.equal("ETIMEDOUT", select(3, client:call("GET", "/wait/await", nil, { timeout = 0.05 })))
      assert.equal(1, seen "closed")
      assert.equal(1, noted["await's cancel function"])
    end)
  end)

  describe("by our client", function()
    it("with call:cancel() calls back with ECANCELED, and the endpoint is closed", function()
      local told
      local call = client:call("GET", "/wait/sleep", nil, { callback = function(...) told = table.pack(...) end })
      assert.equal(200, client:get("/hello").code)
      call:cancel()
      call:cancel()
      pair.wait_for(function() return told end)
      assert.same({ nil, "GET /wait/sleep: cancelled", "ECANCELED" }, { told[1], told[2], told[3] })
      assert.equal(1, seen "closed")
      assert.equal(200, client:get("/hello").code)
    end)

    it("with call:cancel() after the answer changes nothing", function()
      local told, times = nil, 0
      local call = client:call("GET", "/hello", nil, { callback = function(response) told, times = response, times + 1 end })
      pair.wait_for(function() return told end)
      call:cancel()
      assert.equal(200, client:get("/hello").code)
      assert.same({ 200, 1 }, { told.code, times })
    end)

    it("that is closed", function()
      local own = assert(pair.dial(server))
      own:get("/wait/sleep", nil, function() end)
      own:get "/hello"
      own:close()
      assert.equal(1, seen "closed")
    end)

    it("in an endpoint that is given up itself: both are closed", function()
      local call = client:call("GET", "/wait/call", nil, { callback = function() end })
      client:get "/hello"
      client:get "/hello"
      call:cancel()
      assert.same({ 1, 1 }, { seen "closed", seen "inner closed" })
    end)
  end)

  describe("while it waits", function()
    local function cancel(resource)
      local call = client:call("GET", resource, nil, { callback = function() end })
      client:get "/hello"
      call:cancel()
    end

    it("in korv.await: the function that was returned is called once, and a late resume is ignored", function()
      cancel "/wait/await"
      seen "closed"
      assert.equal(1, noted["await's cancel function"])
      cancel "/late-resume"
      client:get "/hello"
      client:get "/hello"
      kept "too late"
      for _ = 1, 3 do assert.equal(200, client:get("/hello").code) end -- on the same coroutine
      kept "again"
      assert.equal(200, client:get("/hello").code)
      assert.is_nil(noted["went on"])
    end)

    it("runs its to-be-closed variables in reverse order, under pcall too, and past one that raises", function()
      cancel "/close-order"
      pair.wait_for(function() return kept and #kept == 3 end)
      assert.same({ "third", "second", "first" }, kept)
    end)

    it("logs what a to-be-closed variable raised", function()
      pair.logged = {}
      cancel "/close-order"
      pair.wait_for_log "in __close"
    end)

    it("cannot wait in a to-be-closed variable, and goes on with the others", function()
      cancel "/close-waits"
      seen "last"
      assert.is_false(kept[1])
      assert.matches("cannot wait", kept[2])
    end)

    it("in a coroutine of its own: that is dropped", function()
      cancel "/own-coroutine"
      assert.equal(1, seen "closed")
      assert.is_nil(noted.inside)
    end)

    it("and is ready already: it does not go on", function()
      local channel = assert(raw_channel.connect(server)):open "subsystem:korv"
      channel:request(text(5, "/ready"))
      pair.wait_for(function() return kept end)
      channel:send(text(6, "/wake") .. '\n{"cancel":5}\n') -- one packet: ready, and cancelled before its turn
      local codes = {}
      for _, response in ipairs(channel:finish()) do codes[response.request_id] = response.code end
      assert.same({ ["5"] = 499, ["6"] = 200 }, codes)
      assert.same({ closed = 1 }, noted)
    end)

    it("in a korv.await whose function waits itself: it goes on, and can be given up", function()
      local response, _, name = client:call("GET", "/nested-await", nil, { timeout = 0.5 })
      assert.equal(1, seen "closed")
      assert.same({ "nested", nil }, { response and response.body, name })
    end)
  end)

  describe("that ran a program", function()
    for what, give_up in pairs {
      ["call:cancel()"] = function(call) call:cancel() end,
      ["the loss of its connection"] = function(_, own) own:close() end,
    } do
      it("by " .. what .. ": it is killed", function()
        local own = waiting.serve()
        local caller, other = assert(pair.dial(own)), assert(pair.dial(own))
        local path, pid = support.path("pid"), nil
        os.remove(path)
        local call = caller:call("GET", "/exec", path, { callback = function() end })
        pair.wait_for(function()
          pid = tonumber((support.read(path) or ""):match "^(%d+)\n")
          return pid
        end)
        local before = support.descriptors(own.pid)
        assert.is_truthy(uv.fs_stat("/proc/" .. pid))
        give_up(call, caller)
        pair.wait_for(function() return not uv.fs_stat("/proc/" .. pid) end)
        assert.same({ "exec closed" }, other:get("/events").body)
        pair.wait_for(function() return support.descriptors(own.pid) <= before - 2 end)
      end)
    end
  end)

  describe("or not: korv.await", function()
    it("returns what resume is called with, at once or later, and only the first time", function()
      assert.same({ 1, "two", false }, client:get("/await-values").body)
      assert.same({ "one", "five" }, client:get("/resume-twice").body)
    end)
  end)
end)
