local app = require "korv.app"
local log = require "korv.log"
local router = require "korv.router"

local function request(verb, resource, body) return { id = 1, verb = verb, resource = resource, body = body } end

-- What a handler, made of an app that define has filled, answers to GET of a resource.
local function answer(resource, define)
  local a = app.new()
  define(a)
  return a:handler()(request("GET", resource))
end

-- An error that names a line of this file, and says what the pattern says.
local function misuse(pattern, fn, ...)
  local arguments = table.pack(...)
  local ok, message = pcall(function()
    fn(table.unpack(arguments, 1, arguments.n))
    return nil -- no tail call: the error is to name this function's line
  end)
  assert.is_false(ok)
  assert.matches("app_spec.lua:%d+: ", message)
  assert.matches(pattern, message)
end

local function endpoint() return 200 end

describe("registering", function()
  it("gives each verb a method", function()
    local a = app.new()
    for _, verb in ipairs { "GET", "STORE", "UPDATE", "DELETE" } do
      a[verb:lower()](a, "/x", function(r) return 200, verb .. r.body end)
    end
    local handle = a:handler()
    for _, verb in ipairs { "GET", "STORE", "UPDATE", "DELETE" } do
      assert.same({ 200, verb .. "!" }, { handle(request(verb, "/x", "!")) })
    end
  end)

  it("takes the verb as an argument, as the first korv does", function()
    local a = app.new()
    a:add_callback("STORE", "/x", function(r) return 200, r.body end)
    assert.same({ 200, 7 }, { a:handler()(request("STORE", "/x", 7)) })
  end)

  it("takes options before the endpoint", function()
    local a = app.new()
    a:get("/x", { doc = "what it does" }, endpoint)
    assert.same({ doc = "what it does" }, a:entry(request("GET", "/x")).options)
  end)

  it("keeps options as they were, whatever becomes of the table", function()
    local a, options = app.new(), { roles = { "admin" }, timeout = 1 }
    a:get("/admin", options, endpoint)
    options.roles[1], options.roles[2], options.timeout = "guest", "admin", 5
    a:get("/guest", options, endpoint)
    options.roles = nil
    a:get("/all", options, endpoint)
    assert.same({ roles = { "admin" }, timeout = 1 }, a:entry(request("GET", "/admin")).options)
    assert.same({ roles = { "guest", "admin" }, timeout = 5 }, a:entry(request("GET", "/guest")).options)
    assert.same({ timeout = 5 }, a:entry(request("GET", "/all")).options)
  end)

  it("raises on misuse, at the line of the script", function()
    local a = app.new()
    misuse("GET /x: unknown option 'colour'", a.get, a, "/x", { colour = 1 }, endpoint)
    misuse("GET /x: option 'doc' must be a string %(got a number%)", a.get, a, "/x", { doc = 1 }, endpoint)
    for _, seconds in ipairs { 0, -1, 0 / 0 } do
      misuse("GET /x: option 'timeout' must be a positive number of seconds %(got ", a.get, a, "/x", { timeout = seconds }, endpoint)
    end
    misuse("GET /x: options must be a table, and come before the endpoint", a.get, a, "/x", endpoint, { doc = "d" })
    misuse("must be a function %(got a table%)", a.get, a, "/x", { doc = "d" })
    misuse("must be a function %(got a nil%)", a.delete, a, "/x")
    misuse("begins with '/'", a.store, a, "x", endpoint)
    misuse("unknown verb POST", a.add_callback, a, "POST", "/x", endpoint)
    misuse("app:use: the middleware must be a function", a.use, a, nil)
    misuse("with a colon: app:get", a.get, "/x", endpoint)
    misuse("app.new: unknown option 'port'", app.new, { port = 1 })
    a:get("/x", endpoint)
    misuse("registered already", a.get, a, "/x", endpoint)
  end)

  it("ends once the handler is made", function()
    local a = app.new()
    a:handler()
    misuse("app:get: the app is serving already", a.get, a, "/x", endpoint)
    misuse("app:use: the app is serving already", a.use, a, endpoint)
    misuse("app:add_callback: the app is serving already", a.add_callback, a, "GET", "/x", endpoint)
  end)

  it("is of one app only", function()
    app.new():get("/x", endpoint)
    assert.equal(404, (app.new():handler()(request("GET", "/x"))))
  end)
end)

describe("a handler", function()
  it("answers 404 with a null body where there is no endpoint", function()
    local a = app.new()
    a:get("/x", endpoint)
    local handle = a:handler()
    for _, r in ipairs { request("GET", "/y"), request("STORE", "/x"), request("POST", "/x"), request("GET", "?") } do
      assert.same({ n = 1, 404 }, table.pack(handle(r)))
    end
  end)

  it("hands out params and query where there are any, and makes no tables where there are none", function()
    local a = app.new()
    local function echo(r) return 200, { params = rawget(r, "params"), query = rawget(r, "query"), resource = r.resource } end
    a:get("/x", echo)
    a:get("/users/:id", echo)
    local handle = a:handler()
    local function body(resource) return select(2, handle(request("GET", resource))) end
    assert.same({ resource = "/x" }, body("/x"))
    assert.same({ resource = "/x?a=1", query = { a = "1" } }, body("/x?a=1"))
    assert.same({ resource = "/x?", query = {} }, body("/x?"))
    assert.same({ resource = "/users/7", params = { id = "7" } }, body("/users/7"))
    assert.same({ resource = "/users/7?a", params = { id = "7" }, query = { a = "" } }, body("/users/7?a"))
  end)

  it("returns all of code and body, nil and false among them", function()
    for _, value in ipairs { false, 0, "" } do
      local code, body = answer("/x", function(a) a:get("/x", function() return 299, value end) end)
      assert.same({ 299, value }, { code, body })
    end
  end)

  it("calls an endpoint that is a table", function()
    local callable = setmetatable({}, { __call = function(_, r) return 200, r.verb end })
    assert.same({ 200, "GET" }, { answer("/x", function(a) a:get("/x", callable) end) })
  end)

  it("lets errors through", function()
    local err = {}
    local ok, raised = pcall(answer, "/x", function(a) a:get("/x", function() error(err) end) end)
    assert.same({ false, true }, { ok, raised == err })
  end)

  it("calls an endpoint without parameters as its own tail", function()
    local level
    answer("/x", function(a)
      a:get("/x", function()
        level = debug.getinfo(1, "t").istailcall
        return 200
      end)
    end)
    assert.is_true(level)
  end)

  it("refuses a resource beyond any use before it is taken apart", function()
    local seen
    local code, body = answer("/x?" .. ("a&"):rep(40000), function(a)
      a:use(function(r, proceed)
        seen = r
        return proceed(r)
      end)
      a:get("/x", endpoint)
    end)
    assert.equal(400, code)
    assert.matches("longer than 65536 bytes", body.message)
    assert.is_nil(seen.query)
    assert.equal(200, (answer("/x?" .. ("a"):rep(65536 - 3), function(a) a:get("/x", endpoint) end)))
    assert.equal(400, (answer("/x?" .. ("a"):rep(65536 - 2), function(a) a:get("/x", endpoint) end)))
  end)
end)

describe("middleware", function()
  local trace
  before_each(function() trace = {} end)

  local function tracing(name)
    return function(r, proceed)
      trace[#trace + 1] = name .. " in"
      local code, body = proceed(r)
      trace[#trace + 1] = name .. " out"
      return code, body
    end
  end

  local function traced_endpoint()
    trace[#trace + 1] = "endpoint"
    return 200, "body"
  end

  it("runs in the order of registration, the first outermost, wherever the endpoint was registered", function()
    assert.same({ 200, "body" }, {
      answer("/x", function(a)
        a:use(tracing "first")
        a:get("/x", traced_endpoint)
        a:use(tracing "second")
      end),
    })
    assert.same({ "first in", "second in", "endpoint", "second out", "first out" }, trace)
  end)

  it("runs around parameters, queries and what has no endpoint", function()
    local a = app.new()
    a:use(tracing "m")
    a:get("/x", endpoint)
    a:get("/:p/y", endpoint)
    local handle = a:handler()
    for resource, code in pairs { ["/x"] = 200, ["/x?q"] = 200, ["/1/y"] = 200, ["/none"] = 404 } do
      trace = {}
      assert.equal(code, (handle(request("GET", resource))))
      assert.same({ "m in", "m out" }, trace)
    end
  end)

  it("sees params and query, may answer itself and may hand on another request", function()
    local a = app.new()
    a:use(function(r, proceed)
      if r.query.deny then return 403, r.params.id end
      return proceed(setmetatable({ user = "u" }, { __index = r }))
    end)
    a:get("/:id", function(r) return 200, r.user .. r.params.id end)
    local handle = a:handler()
    assert.same({ 403, "7" }, { handle(request("GET", "/7?deny")) })
    assert.same({ 200, "u7" }, { handle(request("GET", "/7?")) })
  end)

  it("may change the answer, and call next again", function()
    local calls = 0
    assert.same({ 201, 2 }, {
      answer("/x", function(a)
        a:use(function(r, proceed)
          proceed(r)
          local code, body = proceed(r)
          return code + 1, body
        end)
        a:get("/x", function()
          calls = calls + 1
          return 200, calls
        end)
      end),
    })
  end)

  it("is told when it calls next without the request", function()
    local function careless(_, proceed) return proceed() end
    local ok, message = pcall(answer, "/x", function(a)
      a:use(careless)
      a:get("/x", endpoint)
    end)
    assert.is_false(ok)
    assert.truthy(message:find(router.where(careless), 1, true))
    assert.matches("return next%(request%)", message)
  end)

  it("may yield, and so may what it surrounds, in several requests at once", function()
    local a = app.new()
    a:use(function(r, proceed)
      coroutine.yield("before " .. r.params.id)
      local code, body = proceed(r)
      coroutine.yield("after " .. r.params.id)
      return code, body
    end)
    a:get("/:id", function(r)
      coroutine.yield("in " .. r.params.id)
      return 200, r.params.id
    end)
    local handle = a:handler()
    local one, two = coroutine.wrap(handle), coroutine.wrap(handle)
    assert.same({ "before 1", "before 2" }, { one(request("GET", "/1")), (two(request("GET", "/2"))) })
    assert.same({ "in 1", "in 2", "after 2" }, { one(), two(), (two()) })
    assert.same({ 200, "2" }, { two() })
    assert.equal("after 1", one())
    assert.same({ 200, "1" }, { one() })
  end)

  it("is composed once, not for each request", function()
    local a = app.new()
    a:use(function(r, proceed) return proceed(r) end)
    a:get("/x", endpoint)
    local handle, r = a:handler(), request("GET", "/x")
    handle(r)
    collectgarbage()
    collectgarbage("stop")
    local before = collectgarbage("count")
    for _ = 1, 1000 do handle(r) end
    local grown = collectgarbage("count") - before
    collectgarbage("restart")
    assert.is_true(grown < 1, grown .. " KiB")
  end)
end)

describe("entry", function()
  it("is the router's for a request, whatever its query", function()
    local a = app.new()
    a:get("/users/:id", endpoint)
    a:get("/x", endpoint)
    assert.equal("/users/:id", a:entry(request("GET", "/users/7?x")).resource)
    assert.equal("/x", a:entry(request("GET", "/x?y")).resource)
    assert.is_nil(a:entry(request("GET", "/users/")))
  end)
end)

describe("abort", function()
  local function aborted(...) return app.aborted(select(2, pcall(app.abort, ...))) end

  it("carries a code and a body", function()
    assert.same({ 404, { a = 1 } }, { aborted(404, { a = 1 }) })
    assert.same({ n = 2, 403, nil }, table.pack(aborted(403)))
    assert.same({ n = 2, 500, nil }, table.pack(aborted()))
    assert.same({ 599, false }, { aborted(599, false) })
    assert.equal(100, (aborted(100)))
  end)

  it("refuses what is no code, at the line of the endpoint", function()
    for _, pair in ipairs { { 99, "99" }, { 600, "600" }, { 200.0, "200.0" }, { "text", "a string" }, { true, "a boolean" } } do
      misuse("the code, its first argument, is an integer from 100 to 599 %(got " .. pair[2]:gsub("%p", "%%%0"), app.abort, pair[1])
    end
  end)

  it("is told from other errors", function()
    for _, err in ipairs { "text", 404, {}, { code = 404 }, setmetatable({}, { __metatable = "korv.abort" }), io.stderr } do
      assert.is_nil(app.aborted(err))
    end
    assert.is_nil(app.aborted(nil))
  end)

  it("tells what it is where somebody prints it", function()
    assert.equal("korv.abort with code 404", tostring(select(2, pcall(app.abort, 404))))
  end)
end)

describe("failure", function()
  local function message_of(err) return select(2, app.failure(err, "")).message end

  it("answers an abort as it says", function()
    local _, err = pcall(app.abort, 409, { a = 1 })
    assert.same({ 409, { a = 1 } }, { app.failure(err, "traceback", { tracebacks = false, log = error }) })
  end)

  it("answers anything else with 500, the message and the traceback", function()
    assert.same({ 500, { message = "x.lua:1: oops", traceback = "stack" } }, { app.failure("x.lua:1: oops", "stack") })
    assert.same({ 500, { message = "oops", traceback = "stack" } }, { app.failure("oops", "stack", { tracebacks = true }) })
    assert.same({ 500, { message = "oops", traceback = "" } }, { app.failure("oops") })
  end)

  it("puts every kind of error in words", function()
    assert.equal("42", message_of(42))
    assert.equal("told", message_of(setmetatable({}, { __tostring = function() return "told" end })))
    assert.matches("^file %(0x", message_of(io.stderr))
    assert.equal("(error object is a table value)", message_of({}))
    assert.equal("(error object is a nil value)", message_of(nil))
    assert.equal("(error object is a boolean value)", message_of(true))
    assert.equal("(error object is a function value)", message_of(print))
  end)

  it("survives a __tostring that raises, returns no text or yields", function()
    for _, bad in ipairs { error, function() return {} end, coroutine.yield } do
      local err = setmetatable({}, { __tostring = bad })
      assert.equal("(error object is a table value)", coroutine.wrap(message_of)(err))
    end
  end)

  it("survives a traceback that is none", function() assert.equal("", select(2, app.failure({}, {})).traceback) end)

  it("answers in UTF-8, whatever the error quotes", function()
    local _, body = app.failure("\xFFa\xC3\xA9\xC3b\xED\xA0\x80\xE2\x82", "\x80")
    assert.equal("\u{FFFD}aé\u{FFFD}b\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}", body.message)
    assert.equal("\u{FFFD}", body.traceback)
  end)

  describe("without tracebacks", function()
    local lines
    before_each(function()
      lines = {}
      log.format "text"
      log.sink(function(line) lines[#lines + 1] = line end)
    end)
    after_each(function()
      log.sink(nil)
      log.format "auto"
    end)

    it("tells the client an id, and the log the rest", function()
      local level, text
      local function write(l, t) level, text = l, t end
      local code, body = app.failure("secret", "stack", { tracebacks = false, log = write })
      assert.equal(500, code)
      assert.same({ message = "Internal error", error_id = body.error_id }, body)
      assert.matches("^%x%x%x%x%x%x%x%x$", body.error_id)
      assert.equal("error", level)
      assert.equal("error " .. body.error_id .. ": secret\nstack", text)
    end)

    it("gives each error its id, even where endpoints seed the random numbers", function()
      local seen, count = {}, 0
      for _ = 1, 1000 do
        math.randomseed(42)
        local _, body = app.failure("x", "", { tracebacks = false })
        if not seen[body.error_id] then count = count + 1 end
        seen[body.error_id] = true
      end
      assert.equal(1000, count)
    end)

    it("logs through korv.log where nothing else is given", function()
      local _, body = app.failure("100%d", "a\nb", { tracebacks = false })
      assert.equal(1, #lines)
      assert.truthy(lines[1]:find(" error error " .. body.error_id .. ": 100%d\\na\\nb", 1, true))
    end)
  end)
end)

describe("invalid_result", function()
  local entry = { where = "hello.lua:12" }
  local function text(...) return app.invalid_result(entry, request("GET", "/x"), ...) end

  it("finds nothing wrong with a good code", function()
    for _, code in ipairs { 100, 200, 599 } do assert.is_nil(text(code, nil)) end
  end)

  it("says that nothing was returned, and how to", function()
    assert.equal('GET /x (hello.lua:12) returned nothing: return a code and a body, as in `return 200, { msg = "hi" }`', text())
  end)

  it("says what was returned instead of a code", function()
    local ending = " as its code: the code comes first and is an integer from 100 to 599"
    local cases = {
      { 99, "99" }, { 600, "600" }, { 200.0, "200.0" }, { 0 / 0, "%-?nan" },
      { "200", "a string" }, { { 1 }, "a table" }, { print, "a function" }, { true, "a boolean" },
    }
    for _, pair in ipairs(cases) do
      assert.matches("^GET /x %(hello.lua:12%) returned " .. pair[2] .. ending, text(pair[1], nil))
    end
    assert.matches("returned nil" .. ending, text(nil, "message"))
  end)

  it("takes a place as a text", function()
    assert.matches("^GET /x %(a.lua:1%) returned nothing", app.invalid_result("a.lua:1", request("GET", "/x")))
  end)

  it("speaks of middleware where there is some", function()
    local hint = "return next%(request%)"
    assert.not_matches(hint, text())
    local a = app.new()
    a:use(function() end)
    a:get("/x", endpoint)
    a:handler()
    local r = request("GET", "/x")
    assert.matches(hint, app.invalid_result(a:entry(r), r))
    assert.matches("^GET /x %(no endpoint%) returned nothing.*" .. hint, app.invalid_result(nil, r))
  end)
end)
