-- The two endpoints of the first korv.
return function(app)
  app:get("/hello", { doc = "Says hello." }, function()
    return 200, { msg = "Hello World!" }
  end)

  for _, verb in ipairs { "GET", "STORE", "UPDATE", "DELETE" } do
    app:add_callback(verb, "/echo", function(request)
      return 200, request.body
    end)
  end
end
