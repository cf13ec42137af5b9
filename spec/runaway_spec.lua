--- Endpoints that do not come back are stopped, whatever they do, and nobody else is. How each of them is stopped is in
-- spec/c/watchdog_test.c, too; here it is a server that stops them and goes on.

local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"
local waiting = require "spec.waiting"

local LIMIT = waiting.is_measured and 0.05 or 0.25 -- seconds

local MESSAGE = (": stopped after %g s of computing without waiting (cpu_limit)"):format(LIMIT)

-- The resources of spec/data/runaway.lua.
local function runaways()
  local names, app = {}, {}
  function app.get(_, resource) names[#names + 1] = resource end
  dofile(support.root .. "/spec/data/runaway.lua")(app)
  table.sort(names)
  return names
end

local function serve(options) return waiting.serve(options, { script = "spec/data/computing.lua" }) end

local function assert_stopped(response)
  assert.equal(500, response.code)
  local message = response.body.message
  assert.matches("^%S+%.lua:%d+: stopped", message)
  assert.is_truthy(message:find(MESSAGE, 1, true), message)
  assert.matches("^stack traceback:", response.body.traceback)
end

describe("an endpoint that runs away", function()
  local server, client

  setup(function()
    pair.begin()
    server = serve { cpu_limit = LIMIT }
    client = assert(pair.dial(server))
  end)
  teardown(pair.finish)
  after_each(function() assert.same({ 200, "hello" }, { client:get("/hello").code, client:get("/hello").body }) end)

  for _, resource in ipairs(runaways()) do
    it("is stopped: " .. resource:sub(2), function() assert_stopped(client:get(resource)) end)
  end

  it("is stopped after it has waited, and while it begins to", function()
    assert_stopped(client:get "/late")
    assert_stopped(client:get "/awaits")
  end)

  it("tells where it was, in its message and in its traceback", function()
    local body = client:get("/gsub_callback").body
    assert.matches("runaway%.lua:7: stopped", body.message) -- the loop of spin
    assert.matches("in function 'string%.gsub'\n[^\n]*runaway%.lua:%d+: in function <[^\n]*runaway%.lua:%d+>\n", body.traceback)
  end)

  it("tells the stack of its own coroutine where it was in one", function()
    local body = client:get("/wrapped").body
    assert.matches("%(cpu_limit%)\nin a coroutine of its own, stack traceback:\n[^\n]*runaway%.lua:%d+: in function ", body.message)
    assert.matches("runaway%.lua:%d+: in ", body.traceback)
  end)

  it("has its to-be-closed variables run", function()
    assert_stopped(client:get "/closing")
    assert.same({ "coroutine", "endpoint" }, client:get("/closed").body)
  end)

  it("costs the others its limit and no more", function()
    local other = assert(pair.dial(server))
    assert.equal(200, other:get("/hello").code)
    local stopped, longest = nil, 0
    client:get("/pcall_of_loop", nil, function(response) stopped = response end)
    while not stopped do
      longest = math.max(longest, waiting.time(function() assert.equal(200, other:get("/hello").code) end))
      uv.run "nowait"
    end
    assert_stopped(stopped)
    if waiting.is_measured then assert.is_true(longest < 4 * LIMIT, longest .. " s") end
  end)

  it("is one of many, and each gets its answer", function()
    local list, answered = runaways(), 0
    waiting.together(#list, function(i)
      assert_stopped(assert(client:get(list[i])))
      assert.equal(200, assert(client:get "/hello").code)
      answered = answered + 1
    end, 60)
    assert.equal(#list, answered)
  end)

  for resource, where in pairs { spawn = "in korv.spawn", callback = "in a luv callback" } do
    it("is stopped where nobody waits for it, and logged: " .. where, function()
      assert.equal(200, client:get("/after/" .. resource).code)
      assert.is_truthy(support.wait_for(function() return server.stderr:find(where .. ": [^\n]*computing%.lua:9: stopped") end))
    end)
  end

  it("is stopped where it closes what an error left open", function()
    assert.equal(200, client:get("/after/closing").code)
    assert.equal(200, client:get("/hello").code)
    assert.is_truthy(support.wait_for(function() return server.stderr:find "in korv.spawn: [^\n]*closes" end))
  end)

  it("leaves nothing behind", function()
    local function rounds(n)
      for _ = 1, n do
        for _, resource in ipairs { "/while", "/wrapped_three_deep", "/gsub_callback" } do assert_stopped(client:get(resource)) end
      end
      return client:get("/bytes").body
    end
    local before = rounds(2)
    assert.is_true(rounds(5) - before < 4096)
  end)
end)

describe("an endpoint that computes no longer than it may", function()
  local server, client

  setup(function()
    pair.begin()
    server = serve { cpu_limit = LIMIT }
    client = assert(pair.dial(server))
  end)
  teardown(pair.finish)

  it("is let be, however often", function()
    for _ = 1, 10 do assert.equal(200, client:get("/compute?s=" .. LIMIT * 0.8).code) end
  end)

  it("is let be where it waits in between", function() assert.equal(200, client:get(("/slices?n=10&s=%g"):format(LIMIT / 2)).code) end)

  it("is not taken for the one before it", function()
    local count = waiting.scaled(10000)
    local codes = { [200] = 0, [500] = 0 }
    local function ask(resource)
      local response = assert(client:get(resource))
      codes[response.code] = codes[response.code] + 1
    end
    waiting.together(10, function()
      for i = 1, count // 10 do
        if i % (count // 20) == 1 then ask "/while" end
        ask "/hello"
        if i % (count // 20) == 1 then ask("/compute?s=" .. LIMIT * 0.8) end
      end
    end, 60)
    assert.same({ [200] = count + codes[500], [500] = codes[500] }, codes)
  end)
end)

describe("cpu_limit", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("is 1 by default", function()
    local client = assert(pair.dial(serve()))
    assert.equal(200, client:get("/compute?s=0.9").code)
    assert.matches("stopped after 1 s of", client:get("/while").body.message)
  end)

  it("of 0 is none", function()
    local client = assert(pair.dial(serve { cpu_limit = 0 }))
    assert.equal(200, client:get("/compute?s=1.5").code)
  end)

  it("is a number", function()
    assert.has_error(function() korv.server { cpu_limit = "1" } end,
      "korv.server: cpu_limit must be a number of seconds from 0 on, not a string")
  end)
end)
