--- Where Lua cannot wait, and where it can: what the errors say, and what a luv callback may do.

local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

describe("where Lua cannot wait", function()
  local client, server
  local results = {}

  local function try(fn) return table.pack(pcall(fn)) end

  setup(function()
    pair.begin()
    local own = pair.new_server()
    own:get("/hello", function() return 200 end)
    own:get("/each", function()
      local wait = function() korv.sleep(0.01) return true end
      package.preload["spec.waits"] = wait
      results = {
        ["table.sort"] = try(function() table.sort({ 1, 2, 3 }, wait) end),
        ["string.gsub"] = try(function() return (("x"):gsub("x", wait)) end),
        ["require"] = try(function() require "spec.waits" end),
        ["tostring"] = try(function() return tostring(setmetatable({}, { __tostring = wait })) end),
        ["own coroutine"] = try(function() coroutine.wrap(wait)() end),
        ["await"] = try(function() table.sort({ 1, 2, 3 }, function() korv.await(function() end) end) end),
        ["call"] = try(function() table.sort({ 1, 2, 3 }, function() client:get "/hello" end) end),
        ["send"] = try(function() korv.sleep(-1) end),
      }
      package.loaded["spec.waits"], package.preload["spec.waits"] = nil, nil
      return 200
    end)
    own:get("/fine", function()
      local log = {}
      local function wait(value)
        korv.sleep(0.001)
        log[#log + 1] = value
        return value
      end
      pcall(wait, "pcall")
      xpcall(wait, debug.traceback, "xpcall")
      local t = setmetatable({}, { __add = function() return wait "add" end, __index = function(_, key) return wait(key) end,
                                   __pairs = function() wait "pairs" return next, {} end })
      log.sum, log.field = t + t, t.index
      for key in pairs(t) do error(key) end
      for value in function(_, last) return not last and wait "iterator" or nil end do assert(value) end
      for word in ("gmatch"):gmatch "%a+" do wait(word) end
      load "local wait = ... wait 'load'"(wait)
      return 200, korv.array { table.unpack(log) }
    end)
    server = pair.listen(own)
    client = assert(pair.dial(server))
    assert(client:get("/each").code == 200)
  end)
  teardown(pair.finish)

  it("pcall, metamethods, iterators and loaded code can", function()
    assert.same({ "pcall", "xpcall", "add", "index", "pairs", "iterator", "gmatch", "load" }, client:get("/fine").body)
  end)

  for _, name in ipairs { "table.sort", "string.gsub", "require", "tostring", "await", "call" } do
    it("the error names the line and says what to do: " .. name, function()
      local ok, message = table.unpack(results[name])
      assert.is_false(ok)
      assert.matches("cannot_wait_spec%.lua:%d+: cannot wait ", message)
      assert.matches("before or after", message)
    end)
  end

  for _, name in ipairs { "table.sort", "string.gsub", "require", "tostring" } do
    it("the error names what is in the way: " .. name .. ", and nothing that is not", function()
      local message = results[name][2]
      for _, one in ipairs { "table.sort", "string.gsub", "require", "tostring" } do
        assert.equal(one == name, message:find(one, 1, true) ~= nil, message)
      end
    end)
  end

  it("in a coroutine of the endpoint's own the error says that", function()
    local ok, message = table.unpack(results["own coroutine"])
    assert.is_false(ok)
    assert.matches("cannot_wait_spec%.lua:%d+: cannot wait .*coroutine.*korv%.spawn", message)
  end)

  it("on the main chunk, what has nothing to wait for raises and says what to do", function()
    pair.must_raise("cannot wait here: .*korv%.spawn", function() korv.sleep(1) end)
    pair.must_raise("cannot wait here: .*korv%.spawn", function() korv.await(function() end) end)
  end)

  it("on the main chunk, calls, streams and programs wait all the same", function()
    assert.equal(200, client:get("/hello").code)
    assert.equal("x\n", korv.exec({ "echo", "x" }).stdout)
  end)

  it("in a luv callback everything that waits raises and says what to do", function()
    for name, wait in pairs {
      sleep = function() korv.sleep(1) end,
      await = function() korv.await(function() end) end,
      call = function() client:get "/hello" end,
      exec = function() korv.exec { "true" } end,
      stream = function() for _ in client:stream("GET", "/hello") do error "an item" end end,
      client = function() korv.client { port = server.port, client_keys = { support.key "client" }, known_hosts = false } end,
    } do
      local ok, message = pair.in_luv_callback(wait)
      assert.is_false(ok)
      assert.matches("cannot_wait_spec%.lua:%d+: cannot wait .*korv%.spawn", message, name)
    end
  end)

  it("a callback form and korv.spawn work in a luv callback", function()
    local codes = {}
    pair.in_luv_callback(function()
      client:get("/hello", nil, function(response) codes[#codes + 1] = response.code end)
      korv.spawn(function()
        local response = client:get "/hello"
        codes[#codes + 1] = response.code
      end)
    end)
    pair.wait_for(function() return #codes == 2 end)
  end)

  it("an error in a luv callback is logged with its traceback and ends nothing", function()
    pair.logged = {}
    local function broken() error "in a callback of luv's" end
    local timer, file = uv.new_timer(), nil
    timer:start(0, 0, function()
      timer:close()
      broken()
    end)
    uv.fs_stat("/", function() file = true error { "no text" } end)
    pair.wait_for_log "error in a luv callback: .*in a callback of luv's.*stack traceback.*cannot_wait_spec"
    pair.wait_for(function() return file end)
    assert.equal(200, client:get("/hello").code)
  end)

  it("an endpoint that yields to nobody is told so", function()
    local own = pair.new_server()
    own:get("/x", function() coroutine.yield(1) end)
    local body = assert(pair.dial(pair.listen(own))):get("/x").body
    assert.matches("korv%.sleep or korv%.await", body.message)
  end)
end)
