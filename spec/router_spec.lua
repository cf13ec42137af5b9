local router = require "korv.router"

local function endpoint() return 200 end

-- A router with an endpoint for each resource, all GET.
local function routing(...)
  local r = router.new()
  for _, resource in ipairs { ... } do r:add("GET", resource, endpoint) end
  return r
end

local function matched(r, resource)
  local entry, params = r:match("GET", resource)
  return entry and entry.resource, params
end

-- How many VM instructions, in units of 100, a call takes: time that no other process disturbs.
local function work(fn, ...)
  local count = 0
  debug.sethook(function() count = count + 1 end, "", 100)
  fn(...)
  debug.sethook()
  return count
end

describe("router.add", function()
  local function misuse(pattern, ...)
    local arguments = table.pack(...)
    local ok, message = pcall(function() router.new():add(table.unpack(arguments, 1, arguments.n)) end)
    assert.is_false(ok)
    assert.matches("router_spec.lua:%d+: ", message)
    assert.matches(pattern, message)
  end

  it("refuses an unknown verb", function()
    misuse("unknown verb POST", "POST", "/x", endpoint)
    misuse("unknown verb get", "get", "/x", endpoint)
    misuse("unknown verb nil", nil, "/x", endpoint)
  end)

  it("refuses a resource that does not begin with a slash", function()
    misuse("begins with '/' %(got 'x'%)", "GET", "x", endpoint)
    misuse("begins with '/' %(got ''%)", "GET", "", endpoint)
    misuse("begins with '/' %(got a nil%)", "GET", nil, endpoint)
  end)

  it("refuses a resource with a query", function() misuse("without its query", "GET", "/x?y", endpoint) end)

  it("refuses parameters without a name, or with one that is no name", function()
    misuse("':' has no name", "GET", "/x/:", endpoint)
    misuse("'%*' has no name", "GET", "/x/*", endpoint)
    misuse("':id.json' takes a whole segment", "GET", "/:id.json", endpoint)
    misuse("':1' takes a whole segment", "GET", "/:1", endpoint)
  end)

  it("refuses a repeated name", function()
    misuse("two parameters are named 'id'", "GET", "/:id/x/:id", endpoint)
    misuse("two parameters are named 'id'", "GET", "/:id/*id", endpoint)
  end)

  it("refuses anything behind the rest", function()
    misuse("'%*all' takes all the rest", "GET", "/*all/x", endpoint)
    misuse("'%*all' takes all the rest", "GET", "/*all/", endpoint)
  end)

  it("refuses an endpoint that cannot be called", function()
    misuse("must be a function %(got a nil%)", "GET", "/x", nil)
    misuse("must be a function %(got a table%)", "GET", "/x", {})
  end)

  it("takes a table that can be called", function()
    local callable = setmetatable({}, { __call = endpoint })
    assert.equal(router.where(endpoint), router.new():add("GET", "/x", callable).where)
  end)

  it("refuses a second endpoint for a verb and resource, and names both places", function()
    local function other() return 200 end
    for _, pair in ipairs { { "/x", "/x" }, { "/users/:id", "/users/:name" }, { "/*a", "/*b" }, { "/:a/y/*b", "/:c/y/*d" } } do
      local r = routing(pair[1])
      local ok, message = pcall(r.add, r, "GET", pair[2], other)
      assert.is_false(ok)
      for _, part in ipairs { pair[1], router.where(endpoint), pair[2], router.where(other) } do
        assert.truthy(message:find(part, 1, true), message)
      end
      assert.equal(endpoint, r:entries()[1].endpoint)
    end
  end)

  it("takes the same resource with another verb, and other resources under the same parameter", function()
    local r = routing("/users/:id", "/users/:name/x", "/users/*rest")
    r:add("STORE", "/users/:id", endpoint)
    assert.equal(4, #r:entries())
  end)

  it("keeps what it was given, and where the endpoint is", function()
    local options = { doc = "d" }
    local entry = router.new():add("STORE", "/a/:b/*c", endpoint, options)
    assert.same({ "STORE", "/a/:b/*c", { "b", "c" } }, { entry.verb, entry.resource, entry.parameters })
    assert.equal(endpoint, entry.endpoint)
    assert.equal(options, entry.options)
    assert.matches("spec/router_spec.lua:3$", entry.where)
    assert.equal("[C]", router.where(print))
    assert.equal('[string "return function() end"]:1', router.where(load("return function() end")()))
  end)
end)

describe("router.match", function()
  it("finds literals, of the right verb only", function()
    local r = routing("/", "/hello", "/a/b")
    assert.equal("/", matched(r, "/"))
    assert.equal("/hello", matched(r, "/hello"))
    assert.equal("/a/b", matched(r, "/a/b"))
    assert.is_nil(r:match("STORE", "/hello"))
    assert.is_nil(r:match("POST", "/hello"))
    assert.is_nil(matched(r, "/hell"))
    assert.is_nil(matched(r, "/a"))
    assert.is_nil(matched(r, ""))
    assert.is_nil(matched(r, "hello"))
  end)

  it("gives no table of parameters where there are none", function()
    local _, params = matched(routing("/hello"), "/hello")
    assert.is_nil(params)
  end)

  it("heeds trailing slashes", function()
    local r = routing("/a", "/b/", "/c/:id")
    assert.is_nil(matched(r, "/a/"))
    assert.is_nil(matched(r, "/b"))
    assert.equal("/b/", matched(r, "/b/"))
    assert.is_nil(matched(r, "/c/1/"))
  end)

  it("gives parameters one segment each, none of them empty", function()
    local r = routing("/users/:id/posts/:post")
    assert.same({ "/users/:id/posts/:post", { id = "7", post = "x y" } }, { matched(r, "/users/7/posts/x%20y") })
    assert.is_nil(matched(r, "/users//posts/1"))
    assert.is_nil(matched(r, "/users/7/posts/"))
    assert.is_nil(matched(r, "/users/7/8/posts/1"))
    assert.is_nil(matched(r, "xusers/7/posts/1"))
  end)

  it("gives the rest one or more characters", function()
    local r = routing("/files/*path")
    assert.same({ "/files/*path", { path = "a/b//c/" } }, { matched(r, "/files/a/b//c/") })
    assert.same({ "/files/*path", { path = "/" } }, { matched(r, "/files//") })
    assert.is_nil(matched(r, "/files/"))
    assert.is_nil(matched(r, "/files"))
  end)

  it("sees empty segments of a literal", function()
    local r = routing("/a//:b")
    assert.same({ "/a//:b", { b = "c" } }, { matched(r, "/a//c") })
    assert.is_nil(matched(r, "/a/x/c"))
  end)

  it("prefers a literal to a parameter to the rest", function()
    local r = routing("/users/*rest", "/users/:id", "/users/me")
    assert.equal("/users/me", matched(r, "/users/me"))
    assert.equal("/users/:id", matched(r, "/users/you"))
    assert.equal("/users/*rest", matched(r, "/users/you/x"))
  end)

  it("prefers from the left", function()
    local r = routing("/:a/b", "/a/:b", "/*all")
    assert.same({ "/a/:b", { b = "b" } }, { matched(r, "/a/b") })
  end)

  it("goes back where the better way ends", function()
    local r = routing("/users/me/x", "/users/:id/y", "/:a/me/*z", "/*all")
    assert.same({ "/users/:id/y", { id = "me" } }, { matched(r, "/users/me/y") })
    assert.same({ "/:a/me/*z", { a = "users", z = "q" } }, { matched(r, "/users/me/q") })
    assert.same({ "/*all", { all = "users/you/q" } }, { matched(r, "/users/you/q") })
  end)

  it("leaves no values of a way that it has left", function()
    local r = routing("/:a/:b/:c/x", "/:d/*e")
    assert.same({ "/:d/*e", { d = "1", e = "2/3/y" } }, { matched(r, "/1/2/3/y") })
  end)

  it("decodes parameters, after it has split the resource", function()
    local _, params = matched(routing("/:a/*b"), "/%41%2f%2Fb/c%2Fd/e%2f")
    assert.same({ a = "A//b", b = "c/d/e/" }, params)
  end)

  it("keeps a malformed % as it stands", function()
    local _, params = matched(routing("/:a"), "/%%41%4%zz%4g%")
    assert.equal("%A%4%zz%4g%", params.a)
  end)

  it("decodes every byte, in either case of the digits", function()
    local r = routing("/:a")
    for byte = 0, 255 do
      for _, format in ipairs { "/%%%02x", "/%%%02X" } do
        local _, params = matched(r, format:format(byte))
        assert.equal(string.char(byte), params.a)
      end
    end
    local _, params = matched(r, "/%aB%Ab")
    assert.equal("\xAB\xAB", params.a)
  end)

  it("compares literals as they stand", function()
    local r = routing("/a b", "/%41/:x", "/:any")
    assert.equal("/a b", matched(r, "/a b"))
    assert.equal("/:any", matched(r, "/a%20b"))
    assert.equal("/%41/:x", matched(r, "/%41/1"))
    assert.is_nil(matched(r, "/A/1"))
  end)

  it("takes : and * within a segment as themselves", function()
    local r = routing("/a:b", "/a*/:x")
    assert.equal("/a:b", matched(r, "/a:b"))
    assert.same({ "/a*/:x", { x = "1" } }, { matched(r, "/a*/1") })
    assert.is_nil(matched(r, "/axx"))
  end)
end)

describe("a hostile resource", function()
  it("costs no more for having a hundred thousand segments", function()
    local r = routing("/a/:b/:c", "/:a/b/:c", "/:a/:b/c", "/x/:y/*z")
    local many = ("/a"):rep(100000)
    assert.is_nil(matched(r, many))
    assert.is_true(work(matched, r, many) <= work(matched, r, "/a/b/c/d") + 1)
  end)

  -- One way for each place of the parameter, all alike until their last segment: every node is reached, and left again.
  local function ambiguous(depth)
    local r = router.new()
    for place = 1, depth do
      local segments = {}
      for i = 1, depth do segments[i] = i == place and ":p" or "a" end
      r:add("GET", "/" .. table.concat(segments, "/") .. "/end" .. place, endpoint)
    end
    return r, ("/a"):rep(depth) .. "/none"
  end

  it("costs at most a visit of each node that is registered", function()
    local r, resource = ambiguous(40) -- 40 * 41 / 2 nodes, roughly, where 2^40 ways might be tried
    local units = work(matched, r, resource)
    assert.is_nil(matched(r, resource))
    assert.is_true(units > 0 and units * 100 < 40 * 41 * 60, ("%d00 instructions"):format(units))
  end)

  it("is decoded without a call for each byte", function()
    local r = routing("/*all")
    local resource = "/" .. ("%41"):rep(100000)
    local _, params = matched(r, resource)
    assert.equal(("A"):rep(100000), params.all)
    assert.is_true(work(matched, r, resource) <= 1)
  end)
end)

describe("router.split", function()
  it("splits at the first question mark", function()
    assert.same({ "/a" }, { router.split("/a") })
    assert.same({ "/a", "" }, { router.split("/a?") })
    assert.same({ "/a", "b=c?d" }, { router.split("/a?b=c?d") })
  end)
end)

describe("router.query", function()
  it("decodes names and values", function()
    assert.same({ a = "1", ["b c"] = "d e+&=?" }, router.query("a=1&b+c=d%20e%2B%26=%3f"))
  end)

  it("lets the last of a name win", function() assert.same({ a = "2" }, router.query("a=1&a=2")) end)

  it("gives a name without = an empty text", function()
    assert.same({ a = "", b = "", [""] = "c" }, router.query("a&b=&=c"))
  end)

  it("passes over nothing between two &", function()
    assert.same({ a = "1", b = "2" }, router.query("&&a=1&&b=2&"))
    assert.same({}, router.query(""))
  end)

  it("keeps a malformed % as it stands", function() assert.same({ ["%"] = "%zz%4" }, router.query("%=%zz%4")) end)
end)

describe("router.entries", function()
  it("lists all, sorted by resource, then verb", function()
    local r = routing("/b", "/a/:x", "/a", "/a/*y")
    r:add("DELETE", "/b", endpoint)
    r:add("UPDATE", "/a/:x", endpoint)
    r:add("STORE", "/a/:x/z", endpoint)
    local list = {}
    for i, entry in ipairs(r:entries()) do list[i] = entry.verb .. " " .. entry.resource end
    assert.same({ "GET /a", "GET /a/*y", "GET /a/:x", "UPDATE /a/:x", "STORE /a/:x/z", "DELETE /b", "GET /b" }, list)
  end)
end)
